"""A schema is completed by what it means and does not say."""

from typing import Any

import pytest

from pixtral_decoder.grammar.completion import completed


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"minLength": 3}, "string"),
        ({"multipleOf": 3}, "number"),
        ({"items": {}}, "array"),
        ({"required": ["a"]}, "object"),
        ({"maxLength": 3, "minimum": 3}, ["string", "number"]),
        ({"type": "null", "minimum": 3}, "null"),
        ({"enum": [1], "minimum": 3}, None),
        ({"description": "anything"}, None),
    ],
)
def test_a_schema_has_the_types_that_its_keywords_are_about(
    schema: dict[str, Any], types: Any
) -> None:
    assert completed(schema).get("type") == types
    assert completed({"type": "array", "items": schema})["items"].get("type") == types


@pytest.mark.parametrize(
    ("schema", "made"),
    [
        ({"type": "array", "maxItems": 1}, {"items": {}}),
        ({"type": "array", "maxItems": 1, "prefixItems": [{}]}, {}),
        ({"type": "array"}, {}),
        ({"type": "object", "required": ["a"]}, {"properties": {"a": {}}}),
        (
            {
                "type": "object",
                "properties": {"b": {}},
                "required": ["a", "b"],
                "additionalProperties": {"type": "null"},
            },
            {"properties": {"b": {}, "a": {"type": "null"}}},
        ),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, {}),
        ({"type": "object", "minProperties": 1}, {"additionalProperties": True}),
        ({"type": "object", "minProperties": 1, "properties": {"a": {}}}, {}),
        ({"properties": {"required": {"const": 1}}}, {"type": "object"}),
    ],
)
def test_items_and_names_are_written_out(schema: dict[str, Any], made: dict[str, Any]) -> None:
    before = repr(schema)
    assert completed(schema) == schema | made
    assert repr(schema) == before
