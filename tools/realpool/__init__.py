"""A pool of real processes for benchmarks and tests, each started, struck and ended by pid.

`processes` is one process and what can happen to it, `postgres` a private PostgreSQL server, `pool` an
embedded server, managers and workers around one store. Everything is on loopback, in a scratch directory.
It judges nothing; benchmarks/chaos, benchmarks/takeover.py and tests do.
"""
