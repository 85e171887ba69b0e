"""The messages and their codec: what is valid, what is refused, and in which words."""

import json

import pytest

from kestrel.protocol import codec, schema
from kestrel.protocol import messages as m
from kestrel.protocol.codec import ProtocolError


def refused(text: bytes | str) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        codec.decode_to_manager(text)
    return caught.value


def test_the_profile_of_the_slide_is_a_valid_join() -> None:
    text = '{"type": "profile", "os": "Linux", "ram": 4096, "cores": 4, "provides": ["FOO", "BAR"]}'
    assert codec.decode_to_manager(text) == m.Profile(os="Linux", ram=4096, cores=4, provides=["FOO", "BAR"])


def test_the_least_profile_is_its_type() -> None:
    assert codec.decode_to_manager('{"type": "profile"}') == m.Profile()


def test_the_job_of_a_chat_client_is_valid() -> None:
    text = '{"type":"job","command":"echo hello","queue":3}'
    assert codec.decode_to_manager(text) == m.Job(command="echo hello", queue=3)


def test_unknown_fields_are_ignored() -> None:
    assert codec.decode_to_manager('{"type": "status", "job": 3, "colour": {"deep": [1]}}') == m.Status(job=3)


def test_defaults_do_not_travel() -> None:
    assert codec.encode(m.Status()) == b'{"type":"status"}'
    assert codec.encode(m.Ack(n=4)) == b'{"type":"ack","n":4}'


def test_an_exit_code_of_null_survives_although_absent_means_zero() -> None:
    report = m.AttemptReport(job=1, task=2, attempt=3, state="failed", exit_code=None, signal=9)
    message = m.Report(n=1, attempts=[report])
    assert b'"exit_code":null' in codec.encode(message)
    assert codec.decode_to_manager(codec.encode(message)) == message


@pytest.mark.parametrize(
    "text", ["", "hello", "[1, 2]", "null", '"status"', "{", '{"type": "status"', b"\xff\xfe", "[" * 5000]
)
def test_what_is_no_json_object_is_called_so(text: bytes | str) -> None:
    problem = refused(text)
    assert problem.code == "bad_json"
    assert '{"type": "status"}' in problem.hint


def test_a_message_without_type_says_what_is_missing_and_whom_it_answers() -> None:
    problem = refused('{"id": "x7", "job": 3}')
    assert (problem.code, problem.re) == ("no_type", "x7")


def test_an_unknown_type_is_named_with_the_one_that_was_meant() -> None:
    problem = refused('{"type": "statsu", "id": "x8"}')
    assert (problem.code, problem.re) == ("unknown_type", "x8")
    assert "'statsu'" in problem.text
    assert problem.hint == "did you mean 'status'?"


def test_an_unknown_type_far_from_all_others_gets_the_list() -> None:
    problem = refused('{"type": "qqqqqqqq"}')
    assert problem.hint.startswith("known types: accepted, ack, ")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"type": "job", "command": "x", "queue": "many"}', "$.queue"),
        ('{"type": "job", "command": "x", "queue": 0}', "$.queue"),
        ('{"type": "job", "command": "x", "queue": 100000001}', "$.queue"),
        ('{"type": "job", "command": ""}', "$.command"),
        ('{"type": "job", "command": []}', "$.command"),
        ('{"type": "job"}', "command"),
        ('{"type": "job", "command": "x", "priority": 1001}', "$.priority"),
        ('{"type": "profile", "cores": -1}', "$.cores"),
        ('{"type": "profile", "provides": ["A", 7]}', "$.provides[1]"),
        ('{"type": "report", "n": 0, "attempts": []}', "$.n"),
        ('{"type": "results", "job": 1, "limit": 1000000}', "$.limit"),
        ('{"type": "watch", "job": 1.5}', "$.job"),
        ('{"type": "cancel", "job": -1}', "$.job"),
    ],
)
def test_a_bad_field_is_named(text: str, field: str) -> None:
    problem = refused(text)
    assert problem.code == "bad_field"
    assert field in problem.text
    assert problem.hint


def test_a_message_is_refused_by_whom_it_is_not_for() -> None:
    tasks = codec.encode(m.Tasks(job=1, attempt=1, tasks=[0]))
    assert codec.decode_to_worker(tasks) == m.Tasks(job=1, attempt=1, tasks=[0])
    for decode in (codec.decode_to_manager, codec.decode_to_user):
        with pytest.raises(ProtocolError) as caught:
            decode(tasks)
        assert caught.value.code == "bad_field"


def test_a_message_over_the_bound_is_not_even_looked_at() -> None:
    just = '{"type": "help", "id": "' + "x" * 10 + '"}'
    assert isinstance(codec.decode_to_manager(just + " " * (codec.MESSAGE_BYTES_MAX - len(just))), m.Help)
    problem = refused(just + " " * (codec.MESSAGE_BYTES_MAX + 1 - len(just)))
    assert problem.code == "too_large"
    assert "1000001 bytes" in problem.text


def test_a_refusal_can_be_sent_as_a_message() -> None:
    message = refused('{"type": "job", "id": "j1"}').as_message()
    assert message.re == "j1"
    assert codec.decode_to_user(codec.encode(message)) == message


def test_an_endless_id_is_cut_in_the_refusal() -> None:
    message = refused('{"type": "job", "id": "' + "y" * 5000 + '"}').as_message()
    assert codec.decode_to_user(codec.encode(message)) == message


def test_no_two_messages_share_a_type_and_all_are_known_to_the_codec() -> None:
    classes = {c for _, union in schema.DIRECTIONS for c in union.__args__}
    assert set(schema.message_types().values()) == classes
    assert set(schema.message_types()) == codec.KNOWN_TYPES


def test_every_message_class_belongs_to_a_direction() -> None:
    classes = {c for c in vars(m).values() if isinstance(c, type) and issubclass(c, m.Message)} - {m.Message}
    assert classes == set(schema.message_types().values())


def test_messages_cannot_be_changed_once_made() -> None:
    message = m.Ack(n=1)
    with pytest.raises(AttributeError):
        message.n = 2  # type: ignore[misc]
    assert all(c.__struct_config__.frozen for c in schema.message_types().values())


LEAST: dict[type, dict[str, object]] = {
    m.Job: {"command": "true"},
    m.Extend: {"job": 1, "offset": 0},
    m.Output: {"job": 1, "task": 0},
    m.Drain: {"worker": "w@x/1"},
}
"""The required fields, where it is not just `job`."""


@pytest.mark.parametrize("struct", m.UserToManager.__args__)  # type: ignore[attr-defined]
def test_every_request_of_a_user_has_an_id_that_errors_can_name(struct: type[m.Message]) -> None:
    least = {"type": struct.__struct_config__.tag, **LEAST.get(struct, {"job": 1})}
    assert codec.decode_to_manager(json.dumps(least)).id == ""  # type: ignore[union-attr]
    assert refused(json.dumps({**least, "type": "nonsense", "id": "q9"})).re == "q9"
