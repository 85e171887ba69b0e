"""The codec for everything that can be said, and for everything that cannot."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect as mi

from kestrel.protocol import codec, schema
from kestrel.protocol import messages as m
from kestrel.protocol.codec import ProtocolError

ROOT = Path(__file__).resolve().parents[2]
DECODERS = (codec.decode_to_manager, codec.decode_to_worker, codec.decode_to_user)
SEEDS = 20
MUTATIONS_PER_SEED = 500
NASTY = (
    b"null", b"true", b"-1", b"1e999", b"-0", b"9007199254740993", b"1" * 400, b"0.5", b"[]", b"{}", b'""',
    b'"\\ud800"', b'"\\u0000"', b"\x00", b"\xff", b"\xf0\x9f", b"NaN", b"[" * 2000, b'{"a":' * 2000,
    b'"type"', b'"job"', b",", b"}", b"\\", b'"',
)  # fmt: skip


def values(kind: mi.Type) -> st.SearchStrategy[Any]:
    """Values of a field's type, up to its bounds."""
    match kind:
        case mi.IntType():
            return st.integers(kind.ge, kind.le) if kind.ge is not None else st.integers(-(2**53), 2**53)
        case mi.FloatType():
            return st.floats(kind.ge, allow_nan=False, allow_infinity=False)
        case mi.BoolType():
            return st.booleans()
        case mi.NoneType():
            return st.none()
        case mi.StrType():
            return st.text(min_size=kind.min_length or 0, max_size=12)
        case mi.LiteralType():
            return st.sampled_from(kind.values)
        case mi.ListType():
            return st.lists(values(kind.item_type), min_size=kind.min_length or 0, max_size=3)
        case mi.DictType():
            return st.dictionaries(values(kind.key_type), values(kind.value_type), max_size=3)
        case mi.StructType():
            return st.builds(kind.cls, **{f.name: values(f.type) for f in kind.fields})
        case mi.UnionType():
            return st.one_of(*(values(t) for t in kind.types))
        case _:
            raise AssertionError(f"no strategy for {kind!r}")


def of_any(union: Any) -> st.SearchStrategy[Any]:
    return st.one_of(*(values(mi.type_info(c)) for c in union.__args__))


@given(of_any(m.ToManager))
def test_what_is_sent_to_a_manager_arrives_as_it_was(message: Any) -> None:
    assert codec.decode_to_manager(codec.encode(message)) == message


@given(of_any(m.ManagerToWorker))
def test_what_is_sent_to_a_worker_arrives_as_it_was(message: Any) -> None:
    assert codec.decode_to_worker(codec.encode(message)) == message


@given(of_any(m.ManagerToUser))
def test_what_is_sent_to_a_user_arrives_as_it_was(message: Any) -> None:
    assert codec.decode_to_user(codec.encode(message)) == message


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_any_text_is_read_or_refused(text: bytes | str) -> None:
    read_or_refuse(text)


def test_every_type_is_in_the_material_for_mutations() -> None:
    assert {json.loads(t)["type"] for t in material()} == set(schema.message_types())


@pytest.mark.parametrize("seed", range(SEEDS))
def test_mutated_messages_are_read_or_refused_and_nothing_else(seed: int) -> None:
    """10,000 mutations in all; what is read can be written again, what is refused can be answered."""
    chance = random.Random(seed)
    valid = material()
    read = refused = 0
    for _ in range(MUTATIONS_PER_SEED):
        text = bytearray(chance.choice(valid))
        for _ in range(chance.randint(1, 4)):
            mutate(text, chance)
        if read_or_refuse(bytes(text)):
            read += 1
        else:
            refused += 1
    assert read > 0, "mutations that never leave a message valid test too little"
    assert refused > MUTATIONS_PER_SEED // 4


def material() -> list[bytes]:
    examples = json.loads((ROOT / "tools/protocol/examples.json").read_text(encoding="utf-8"))
    return [json.dumps(e).encode() for e in examples.values()]


def mutate(text: bytearray, chance: random.Random) -> None:
    """One small harm: bytes flipped, removed, doubled, swapped for something nasty, or cut off."""
    start = chance.randrange(len(text) + 1)
    end = min(len(text), start + chance.randint(1, 12))
    match chance.randrange(6):
        case 0 if start < len(text):
            text[start] ^= 1 << chance.randrange(8)
        case 1:
            del text[start:end]
        case 2:
            text[start:start] = text[start:end]
        case 3:
            text[start:end] = chance.choice(NASTY)
        case 4:
            text[start:start] = chance.choice(NASTY)
        case _:
            if chance.random() < 0.2:
                del text[start:]
            else:
                text[start:start] = b" "


def read_or_refuse(text: bytes | str) -> bool:
    """Decode at every end; whatever comes must be a message or a `ProtocolError` that can be sent."""
    outcomes = [_read_or_refuse_with(decode, text) for decode in DECODERS]
    return True in outcomes


def _read_or_refuse_with(decode: Callable[[bytes | str], Any], text: bytes | str) -> bool:
    try:
        message = decode(text)
    except ProtocolError as problem:
        refusal = problem
    else:
        assert decode(codec.encode(message)) == message
        return True
    assert codec.decode_to_user(codec.encode(refusal.as_message())) == refusal.as_message()
    return False
