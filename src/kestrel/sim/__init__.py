"""The simulator: the production shells of manager and worker on a virtual clock and a faulty network.

`python -m kestrel.sim --seed 17 --verbose` replays one history; the same seed gives the same history on
every machine. Used by the tests and by people who look for bugs; nothing in production imports it.
"""
