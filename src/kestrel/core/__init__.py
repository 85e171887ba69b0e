"""The pure heart: the manager's scheduler and the worker's execution machine.

Events in, effects out. No I/O, no clock (`now` is an argument), no chance. See `scheduler` for the
manager's side and `execution` for the worker's.
"""
