"""Whatever happens to the bytes of a spool: whole lines are read, and nothing that nobody wrote."""

from __future__ import annotations

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from kestrel.worker.journal import line_of, read_lines

TEXT = st.text(alphabet=st.sampled_from('a"\\{}:\n\t é\ufffd0f'), max_size=30)
BODIES = st.lists(
    st.one_of(
        st.builds(lambda i, out: {"job": 1, "task": i, "attempt": i, "out": out}, st.integers(0, 99), TEXT),
        st.builds(lambda attempts: {"forget": attempts}, st.lists(st.integers(0, 99), max_size=3)),
        st.builds(lambda n: {"life": n}, st.integers(1, 99)),
    ).map(msgspec.json.encode),
    max_size=12,
)


def harmed(lines: list[bytes], start: int, end: int) -> list[bool]:
    """Which lines lose a byte, or are split, when the bytes from `start` to `end` are replaced."""
    found, offset = [], 0
    for line in lines:
        inner = offset + len(line)
        found.append((start < inner and end > offset) if start < end else offset < start < inner)
        offset = inner
    return found


@given(BODIES, st.data(), st.binary(max_size=8) | st.sampled_from([b"\n", b"}", b'{"job":', b"0" * 8 + b" "]))
def test_one_damage_costs_the_lines_it_touches_and_no_others(
    bodies: list[bytes], data: st.DataObject, junk: bytes
):
    lines = [line_of(body) for body in bodies]
    whole = b"".join(lines)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    found, _ = read_lines(whole[:start] + junk + whole[end:])
    touched = harmed(lines, start, end)
    assert is_part(found, bodies), "something was read that nobody wrote, or in another order"
    assert is_part([b for b, t in zip(bodies, touched, strict=True) if not t], found), "a whole line was lost"


@given(BODIES, st.data())
def test_a_file_that_ends_too_soon_has_all_lines_before_the_cut_and_only_the_last_is_called_torn(
    bodies: list[bytes], data: st.DataObject
):
    whole = b"".join(line_of(body) for body in bodies)
    cut = data.draw(st.integers(0, len(whole)))
    found, damage = read_lines(whole[:cut])
    assert found == bodies[: len(found)]
    assert len(found) >= whole[:cut].count(b"\n")
    assert [d.torn for d in damage] in ([], [True])


@given(BODIES)
@example([])
def test_what_is_whole_is_read_without_complaint(bodies: list[bytes]):
    assert read_lines(b"".join(line_of(body) for body in bodies)) == (bodies, [])


@given(BODIES)
def test_files_of_older_versions_are_read(bodies: list[bytes]):
    texts = [b'{"life":1}', *bodies]
    assert read_lines(b"".join(text + b"\n" for text in texts)) == (texts, [])


@given(BODIES, st.binary(min_size=1))
def test_garbage_is_told_with_its_place(bodies: list[bytes], garbage: bytes):
    garbage = garbage.replace(b"\n", b"") or b"\0"
    before = b"".join(line_of(body) for body in bodies)
    found, damage = read_lines(before + garbage + b"\n" + line_of(b'{"life":2}'))
    assert found == [*bodies, b'{"life":2}']
    (only,) = damage
    assert (only.line, only.offset, only.size) == (len(bodies) + 1, len(before), len(garbage))


def is_part(some: list[bytes], all_: list[bytes]) -> bool:
    """Whether these appear among those, in their order."""
    rest = iter(all_)
    return all(text in rest for text in some)
