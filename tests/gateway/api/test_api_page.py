"""docs/api.md tells of every field of a chat, and of tests that exist."""

import re
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor

from pixtral.v1 import chat_pb2
from tests.support.named_tests import ROOT, functions_of

ROW = re.compile(r"^\| `([a-z0-9_.\[\]]+)` \|.*\| `([\w/.]+)::(\w+)` \|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs" / "api.md").read_text("utf-8"))


def paths(message: Descriptor, path: str = "") -> Iterator[tuple[str, bool]]:
    """Each field's path, and whether it holds a value: not a message with fields of its own."""
    for field in message.fields:
        name = f"{path}{field.name}"
        inner = field.message_type
        if inner is None or inner.GetOptions().map_entry:
            yield name, True
        else:
            yield name, False
            yield from paths(inner, f"{name}{'[]' if field.is_repeated else ''}.")


def test_every_field_of_a_chat_has_one_row() -> None:
    rows = [field for field, _, _ in ROWS]
    fields = dict(paths(chat_pb2.Chat.DESCRIPTOR))
    assert len(rows) == len(set(rows))
    assert {name for name, holds_value in fields.items() if holds_value} <= set(rows)
    assert set(rows) <= set(fields)


@pytest.mark.parametrize("file", sorted({file for _, file, _ in ROWS}))
def test_every_test_that_a_row_names_exists(file: str) -> None:
    assert {test for _, named, test in ROWS if named == file} <= functions_of(file)
