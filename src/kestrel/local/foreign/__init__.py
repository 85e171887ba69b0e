"""Configurations of XMPP servers that are not ours: complete, minimal, for one pool. Text only.

Nothing here does I/O. Called by `kestrel server config`, and by the tests and benchmarks, which run
Prosody and ejabberd with exactly these texts.
"""

from kestrel.local.foreign.ejabberd import ejabberd_yml, ejabberdctl_cfg
from kestrel.local.foreign.plan import Federation, PlanError, ServerPlan
from kestrel.local.foreign.prosody import prosody_cfg

__all__ = ["Federation", "PlanError", "ServerPlan", "ejabberd_yml", "ejabberdctl_cfg", "prosody_cfg"]
