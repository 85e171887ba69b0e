"""Networks of namespaces for a test; where there can be none it skips loudly, or fails if `CI` is set."""

from __future__ import annotations

import functools
import os

import pytest

from realpool.networks import Network, missing

__all__ = ["Network", "need_networks"]

_missing = functools.cache(missing)


def need_networks() -> None:
    """No test without network namespaces."""
    problem = _missing()
    if not problem:
        return
    text = f"no networks of namespaces: {problem}"
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)
