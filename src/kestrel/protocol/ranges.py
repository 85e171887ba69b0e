"""Sets of task indices as people write them: `3`, `1-7`, `1-7:2`, `0,4,8-11`.

Pure. Used by the manager for selectors in messages and by the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kestrel.errors import UsageError


def parse_ranges(text: str, size: int, *, count_max: int | None = None) -> list[int]:
    """Indices below `size` that `text` names, ascending, each once; empty text names all.

    Raises `UsageError` for what cannot be read, for indices that the job does not have, and for more
    than `count_max` of them.
    """
    if not text.strip():
        return list(range(size))
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        indices = _part(part, size)
        if count_max is not None and len(found) + len(indices) > count_max:
            raise UsageError(
                f"more than {count_max} tasks are named", hint="name fewer at a time, or the whole job"
            )
        found.update(indices)
    return sorted(found)


def _part(part: str, size: int) -> range:
    span, _, step_text = part.partition(":")
    low_text, dash, high_text = span.partition("-")
    try:
        low = int(low_text)
        high = int(high_text) if dash else low
        step = int(step_text) if step_text else 1
    except ValueError:
        raise UsageError(
            f"cannot read the task range {part!r}", hint="write 3, 1-7, 1-7:2 or a list such as 0,4,8-11"
        ) from None
    if step < 1 or high < low or low < 0:
        raise UsageError(
            f"the task range {part!r} is empty", hint="the lower end comes first, steps are >= 1"
        )
    if high >= size:
        raise UsageError(f"there is no task {high}: the job has {size} (0-{size - 1})")
    return range(low, high + 1, step)


def format_ranges(indices: Iterable[int], *, parts_max: int = 20) -> str:
    """The shortest `0-3,7` form of ascending indices; cut with `…` after `parts_max` parts."""
    parts: list[str] = []
    for low, high in _spans(list(indices)):
        if len(parts) == parts_max:
            parts.append("…")
            break
        parts.append(str(low) if low == high else f"{low}-{high}")
    return ",".join(parts)


def _spans(indices: Sequence[int]) -> Iterable[tuple[int, int]]:
    start = 0
    for i in range(1, len(indices) + 1):
        if i == len(indices) or indices[i] != indices[i - 1] + 1:
            yield indices[start], indices[i - 1]
            start = i
