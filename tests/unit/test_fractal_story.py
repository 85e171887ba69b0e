"""What the demo tells of a killed worker."""

import json

import story
import timeline
from kestrel.protocol.messages import TaskResult
from story import Kill

RESULTS = [
    TaskResult(task=0, attempt=10, worker="w1@x/1", started=100.0, wall_s=2.0),
    TaskResult(task=1, attempt=11, worker="w2@x/1", started=100.5, wall_s=2.0),
    TaskResult(task=2, attempt=20, worker="w2@x/1", started=103.0, wall_s=1.0),
    TaskResult(task=3, attempt=21, worker="w2@x/1", started=104.0, wall_s=1.0, state="FAILED"),
    TaskResult(task=4, state="CANCELLED"),
]
KILL = Kill("w1", 103.0, 1, held=[(3, 14), (0, 10), (2, 12)])


def test_each_result_of_a_worker_becomes_a_record() -> None:
    records = story.completed_records(RESULTS)
    assert [(r["worker"], r["task"], r["started"], r["ended"], r["outcome"]) for r in records] == [
        ("w1", 0, 100.0, 102.0, "completed"),
        ("w2", 1, 100.5, 102.5, "completed"),
        ("w2", 2, 103.0, 104.0, "completed"),
        ("w2", 3, 104.0, 105.0, "failed"),
    ]


def test_what_was_reported_in_time_is_not_lost_and_the_oldest_of_the_rest_was_running() -> None:
    records = story.lost_records(RESULTS, KILL)
    assert [(r["task"], r["attempt"], r["started"], r["ended"]) for r in records] == [
        (2, 12, 102.0, 103.0),
        (3, 14, 103.0, 103.0),
    ]
    assert [r["outcome"] for r in records] == ["lost", "requeued"]


def test_a_worker_that_never_finished_anything_lost_at_the_kill() -> None:
    records = story.lost_records([], Kill("w9", 50.0, 1, held=[(0, 1)]))
    assert [(r["started"], r["ended"]) for r in records] == [(50.0, 50.0)]


def test_a_clock_that_reads_later_than_the_kill_makes_no_negative_time() -> None:
    late = [TaskResult(task=0, attempt=1, worker="w1@x/1", started=103.0, wall_s=0.5)]
    (record,) = story.lost_records(late, Kill("w1", 103.2, 1, held=[(1, 2)]))
    assert record["started"] == record["ended"] == 103.2


def test_the_time_line_can_be_drawn_from_the_records() -> None:
    records = [*story.completed_records(RESULTS), *story.lost_records(RESULTS, KILL)]
    records += [story.mark("w1", "joined", 99.0), story.mark("w1", "killed", 103.0)]
    attempts, marks = timeline.read_records(json.dumps(r) for r in records)
    assert timeline.run_again(attempts) == {20}
    assert [mark.mark for mark in marks] == ["joined", "killed"]
    timeline.draw(attempts, marks)
