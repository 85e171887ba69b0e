"""Which jobs the users of a simulated world submit, drawn by seed. Called by the world."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Literal

from kestrel.protocol import messages as m
from kestrel.sim.scripts import ScriptMix, Scripts
from kestrel.sim.user import JobPlan

TAGS = ("PYTHON", "FOO", "BAR")
WORK_S_MAX = 40.0
"""About how much work a job is, but for its slow tasks: it must end within the time of liveness."""


def draw_question(random: Random) -> m.UserToManager | str:
    """Something that people ask while their jobs run; words for a chat, or a message."""
    job = random.randint(1, 4)
    return random.choice(
        (
            "status",
            f"results {job}",
            f"explain {job} 0",
            "pool",
            "hlep",
            m.Status(),
            m.Status(all=True),
            m.Status(job=job),
            m.Pool(),
            m.Explain(job=job),
            m.Explain(job=job, task=random.randint(0, 5)),
            m.ListTasks(job=job, limit=random.choice((1, 100)), states=random.choice(([], ["running"]))),
            m.Results(job=job, tasks="0"),
            m.Output(job=job, task=random.randint(0, 5)),
            m.Help(),
        )
    )


def draw_plan(random: Random, scripts: Scripts, name: str, slots_max: int) -> JobPlan:
    """One job, with the scripts of its tasks written."""
    size = random.choice((1, 3, 10, 30, 60, 150))
    mix = ScriptMix(
        seconds=min(random.choice((0.003, 0.05, 0.4, 2.0)), WORK_S_MAX / size),
        slow=random.choice((0.0, 0.1)),
        failing=random.choice((0.0, 0.3)),
        hopeless=random.choice((0.0, 0.0, 0.2)),
        poisonous=random.choice((0.0, 0.0, 0.0, 0.05)),
        missing=random.choice((0.0, 0.0, 0.1)),
    )
    scripts.write(name, size, mix)
    restart: Literal["always", "never"] = random.choice(("always", "always", "never"))
    with_queue = random.random() < 0.5
    pieces: list[list[m.Parameters]] = []
    args: list[m.Parameters] | None = None
    if not with_queue:
        words = [[str(i)] for i in range(size)]
        cuts = sorted({0, size, *(random.randint(0, size) for _ in range(random.choice((0, 0, 1, 4))))})
        parts = [words[a:b] for a, b in pairwise(cuts)]
        args, pieces = parts[0], parts[1:]
    message = m.Job(
        command=random.choice((f"task {name}", ["task", name], ["task", name, "{}"], f"task {name} {{}}")),
        id=f"id-{name}",
        name=name,
        queue=size if with_queue else None,
        args=args,
        open=bool(pieces),
        requires=[random.choice(TAGS).lower()] if random.random() < 0.2 else [],
        slots=random.choice((1, 1, 1, min(2, slots_max))),
        priority=random.choice((0, 0, 5)),
        # a task that must not run twice is not tried again either, so that the ledger can tell
        retries=0 if restart == "never" else random.choice((0, 0, 2)),
        restart=restart,
        time_limit_s=mix.seconds * 10 if random.random() < 0.2 else 0.0,
    )
    plan = JobPlan(
        name, message, pieces, size=size, page=random.choice((1, 7, 50)), watch=random.random() < 0.5
    )
    if random.random() < 0.25:
        plan.cancel_after_s = random.uniform(0.0, 5.0)
        if random.random() < 0.5:
            last = len(args or ()) if not with_queue else size
            plan.cancel_tasks = f"0-{random.randint(1, last) - 1}"
    if random.random() < 0.3:
        plan.repeat_after_s = random.uniform(0.0, 20.0)
    return plan
