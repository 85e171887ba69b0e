"""Real chaos: a bag of short tasks on a pool whose parts are killed and stopped all the time.

`python benchmarks/chaos` runs it (`make chaos`). `checker` is pure and judges what was found; `bag` makes
the tasks and submits them; `strikes` chooses and does what happens to whom; `reading` collects the
evidence; `report` prints it; `run` puts all together.
"""
