"""docs/protocol.md and its JSON Schema: fresh, complete, and their examples are true."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

import gen_docs
from kestrel.protocol import codec, schema
from kestrel.protocol import messages as m

ROOT = Path(__file__).resolve().parents[2]
SOURCE = gen_docs.message_sources()
EXAMPLES: dict[str, dict[str, Any]] = json.loads(
    (ROOT / "tools/protocol/examples.json").read_text(encoding="utf-8")
)
HEAD = (ROOT / "tools/protocol/head.md").read_text(encoding="utf-8")
DECODERS = {
    "worker → manager": codec.decode_to_manager,
    "manager → worker": codec.decode_to_worker,
    "user → manager": codec.decode_to_manager,
    "manager → user": codec.decode_to_user,
}
STRUCTS = [
    c
    for c in vars(m).values()
    if isinstance(c, type)
    and issubclass(c, msgspec.Struct)
    and c.__module__ in {module.__name__ for module in schema.SOURCES}
    and c is not m.Message
]


def test_the_generated_documents_are_fresh() -> None:
    assert gen_docs.stale() == [], "run `make docs` and commit what it wrote"


def test_a_changed_message_makes_the_documents_stale() -> None:
    text = schema.protocol_markdown(SOURCE.replace("Memory in MiB.", "Memory in GiB."), HEAD, EXAMPLES)
    assert text != (ROOT / "docs/protocol.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("title", "union"), schema.DIRECTIONS)
def test_every_example_is_read_by_its_receiver(title: str, union: Any) -> None:
    for struct in union.__args__:
        example = EXAMPLES[struct.__struct_config__.tag]
        assert isinstance(DECODERS[title](json.dumps(example)), struct)


def test_examples_use_no_field_that_does_not_exist() -> None:
    """Unknown fields are ignored when reading, so a misspelt example would go unnoticed."""

    def said(value: Any, seen: set[str]) -> set[str]:
        if isinstance(value, dict):
            seen.update(value)
            for inner in value.values():
                said(inner, seen)
        elif isinstance(value, list):
            for inner in value:
                said(inner, seen)
        return seen

    fields = {f for struct in STRUCTS for f in struct.__struct_encode_fields__} | {"type"}
    for example in EXAMPLES.values():
        assert said(example, set()) <= fields


def test_there_is_one_example_for_each_message_and_no_other() -> None:
    assert set(EXAMPLES) == set(schema.message_types())
    assert all(example["type"] == tag for tag, example in EXAMPLES.items())


def test_every_field_of_every_struct_has_a_meaning() -> None:
    docs = schema.field_docs(SOURCE)
    for struct in STRUCTS:
        assert struct.__doc__, struct
        for field in struct.__struct_fields__:
            assert schema.meaning(docs, struct.__name__, field)


def test_no_meaning_is_kept_for_a_field_that_is_gone() -> None:
    fields = {f"{s.__name__}.{f}" for s in STRUCTS for f in s.__struct_fields__}
    assert set(schema.MEANINGS) <= fields
    assert set(schema.COMMON_MEANINGS) <= {f.split(".")[1] for f in fields}


def test_every_line_of_the_worked_conversation_is_read_by_its_receiver() -> None:
    lines = [
        line for block in re.findall(r"```text\n(.*?)```", HEAD, re.DOTALL) for line in block.splitlines()
    ]
    assert len(lines) >= 12
    user_turn = {"results", "result_page"}
    for line in lines:
        speaker, text = line.split(" ", 1)
        kind = json.loads(text)["type"]
        if speaker == "M":
            decode = codec.decode_to_user if kind in user_turn else codec.decode_to_worker
        else:
            decode = codec.decode_to_manager
        assert decode(text).__struct_config__.tag == kind


def test_every_link_in_the_page_leads_somewhere() -> None:
    text = (ROOT / "docs/protocol.md").read_text(encoding="utf-8")
    headings = {
        line.lstrip("# ").lower().replace(" ", "-") for line in text.splitlines() if line.startswith("#")
    }
    assert set(re.findall(r"\(#([^)]+)\)", text)) <= headings
    for target in re.findall(r"\]\(([^#)]+)\)", text):
        assert (ROOT / "docs" / target).is_file(), target


def test_the_schema_names_every_field_and_what_is_required() -> None:
    document = schema.json_schema(SOURCE)
    for tag, struct in schema.message_types().items():
        definition = document["$defs"][struct.__name__]
        assert set(definition["properties"]) == {"type", *struct.__struct_encode_fields__}
        assert definition["properties"]["type"]["enum"] == [tag]
        required = {f.encode_name for f in msgspec.structs.fields(struct) if f.required}
        assert set(definition["required"]) == {"type"} | required


def test_every_reference_in_the_schema_is_defined() -> None:
    text = schema.json_schema_text(SOURCE)
    document = json.loads(text)
    references = set(re.findall(r'"#/\$defs/([^"]+)"', text))
    assert references <= set(document["$defs"])
    assert {"worker_to_manager", "manager_to_worker", "user_to_manager", "manager_to_user"} <= set(
        document["$defs"]
    )


def test_a_field_without_any_meaning_is_an_error() -> None:
    with pytest.raises(KeyError):
        schema.meaning({}, "Profile", "no_such_field")
