"""docs/api.md tells of every field of a chat, and of tests that exist."""

import re
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor

from pixtral.v1 import chat_pb2
from tests.support.named_tests import ROOT, functions_of

ROW = re.compile(r"^\| `([a-z0-9_.\[\]]+)` \|.*\| `([\w/.]+)::(\w+)` \|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs" / "api.md").read_text("utf-8"))


def leaves(message: Descriptor, path: str = "") -> Iterator[str]:
    for field in message.fields:
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        name = f"{path}{field.name}"
        if field.message_type is None or is_map:
            yield name
        else:
            yield from leaves(field.message_type, f"{name}{'[]' if field.is_repeated else ''}.")


def test_every_field_of_a_chat_has_a_row() -> None:
    assert sorted(field for field, _, _ in ROWS) == sorted(leaves(chat_pb2.Chat.DESCRIPTOR))


@pytest.mark.parametrize("file", sorted({file for _, file, _ in ROWS}))
def test_every_test_that_a_row_names_exists(file: str) -> None:
    assert {test for _, named, test in ROWS if named == file} <= functions_of(file)
