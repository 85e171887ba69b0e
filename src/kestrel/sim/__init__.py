"""The simulator: the production shells of managers and workers on a virtual clock, with a faulty network, a
database that has its days, and machines that die, stop, sleep and go wrong.

`python -m kestrel.sim --seed 17 --verbose` replays one history; the same seed gives the same history on
every machine. Used by the tests, by `make soak` and by people who look for bugs; nothing in production
imports it. Where to begin: `world` plays a history, `faults` says what goes wrong, `checkers` who judges.
"""
