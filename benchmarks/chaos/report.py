"""Prints what the checker found, as Markdown. Called by `chaos.run`."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from chaos.checker import Strike, Verdict
from chaos.strikes import Death


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])


def verdict_table(verdict: Verdict, took_s: float, tasks: int, calm_rate: float) -> str:
    """The counts that must be zero first."""
    rate = tasks / took_s
    rows: list[tuple[str, object]] = [
        ("tasks", f"{verdict.tasks:,}"),
        ("**tasks lost**", f"**{verdict.lost}**"),
        ("**recorded twice**", f"**{verdict.twice}**"),
        ("results whose number is missing or used twice", verdict.gaps),
        ("results without a proof of their own attempt and worker", verdict.unproven),
        ("results that the client saw otherwise than they are stored", verdict.disagreeing),
        ("attempts started more than once, torn proofs", f"{verdict.restarted}, {verdict.torn}"),
        ("results by state", ", ".join(f"{n:,} {s}" for s, n in sorted(verdict.states.items()))),
        ("extra runs (a task that ran before was run again)", _share(len(verdict.extras), verdict.tasks)),
        ("work whose result did not count", _cost(verdict)),
        ("longest gap without a new result", f"{verdict.longest_gap_s:.2f} s"),
        ("tasks/s with chaos", f"{rate:,.0f}"),
    ]
    if calm_rate:
        rows.append(("tasks/s of the same bag without chaos, same run", f"{calm_rate:,.0f}"))
        rows.append(("ratio", f"{rate / calm_rate:.2f}"))
    return table(("", "count"), rows)


def _share(count: int, whole: int) -> str:
    return f"{count} ({100 * count / max(1, whole):.3f} %)"


def _cost(verdict: Verdict) -> str:
    share = 100 * verdict.extra_s / max(1e-9, verdict.useful_s + verdict.extra_s)
    return f"{verdict.extra_s:.1f} s ({share:.2f} %)"


def strike_table(verdict: Verdict, strikes: Sequence[Strike]) -> str:
    """What each kind of fault cost."""
    counts = Counter(strike.kind for strike in strikes)
    causes = Counter(extra.cause for extra in verdict.extras)
    rows = []
    for kind in sorted(counts | causes):
        pauses = verdict.pauses.get(kind, [])
        median = f"{statistics.median(pauses):.2f}" if pauses else "-"
        worst = f"{max(pauses):.2f}" if pauses else "-"
        rows.append((kind, counts[kind], median, worst, causes[kind]))
    head = ("what was done", "times", "then no new result for: median, s", "worst, s", "extra runs it caused")
    return table(head, rows)


def deaths_text(deaths: Sequence[Death]) -> str:
    """Processes that ended by themselves, with the end of their logs."""
    if not deaths:
        return "No process ended by itself."
    parts = [f"{len(deaths)} times a process ended by itself:"]
    for death in deaths[:5]:
        last = "\n    ".join(death.log.splitlines()[-12:])
        parts.append(f"- {death.name}, exit code {death.exit_code}:\n    {last}")
    return "\n".join(parts)
