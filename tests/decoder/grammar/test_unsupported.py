"""A refusal names the keyword that an answer would not be held to, and its place in the schema."""

import json
import warnings
from typing import Any

import pytest

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from pixtral_decoder.grammar.unsupported import beyond_xgrammar, circular, ignored, malformed

TEXTS = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}


def within(schema: Any) -> dict[str, Any]:
    """A schema deep in another one, beside much that is fine."""
    fine = {"type": "object", "properties": {"a/b": {"type": "string", "maxLength": 5}}}
    return {
        "type": "object",
        "properties": {"fine": fine, "tags~": {"anyOf": [{"type": "null"}, schema]}},
    }


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        (TEXTS, "uniqueItems"),
        ({"type": "integer", "multipleOf": 5}, "multipleOf"),
        ({"allOf": [{"type": "string"}, {"enum": ["yes", "no"]}]}, "allOf"),
        ({"type": "string", "pattern": "^a", "maxLength": 3}, "pattern beside maxLength"),
        ({"type": "string", "format": "iri"}, "format"),
        (
            {"type": "object", "properties": {}, "patternProperties": {"^a": {}}},
            "properties beside patternProperties",
        ),
        ({"type": "array", "contains": {}, "minContains": 2}, "the combination of keywords"),
    ],
)
def test_what_vllm_tells_by_keywords_is_found(schema: dict[str, Any], keyword: str) -> None:
    assert beyond_xgrammar(schema) == f"the engine cannot enforce {keyword} at #: leave it out"
    told = beyond_xgrammar(within(schema))
    assert told is not None
    assert f"enforce {keyword} at #/properties/tags~0/anyOf/1:" in told


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"not": {"type": "string"}}, "not at #/properties/tags~0/anyOf/1:"),
        ({"if": {}, "then": {}}, "if at #/properties/tags~0/anyOf/1:"),
        ({"$dynamicRef": "#a"}, "$dynamicRef at #/properties/tags~0/anyOf/1:"),
        *(
            ({"type": "object", keyword: {"a": ["b"]}}, f"{keyword} at #/properties/tags~0/anyOf/1")
            for keyword in ("dependentRequired", "dependencies")
        ),
        ({"dependentSchemas": {"a": {}}}, "dependentSchemas at #/properties/tags~0/anyOf/1"),
        ({"$ref": "#/$defs/a", "maximum": 3}, "maximum beside $ref at #/properties/tags~0/anyOf/1"),
        (
            {"type": "object", "properties": {"a": {}}, "anyOf": [{"required": ["a"]}]},
            "properties beside anyOf at #/properties/tags~0/anyOf/1",
        ),
        ({"enum": ["a", "bc"], "maxLength": 1}, "maxLength beside enum at"),
        ({"const": 5, "maximum": 3}, "maximum beside const at"),
        ({"anyOf": [{}], "allOf": [{}]}, "allOf beside anyOf at"),
        ({"oneOf": [{}], "additionalProperties": False}, "additionalProperties beside oneOf at"),
        (
            {"type": "array", "items": {"$ref": "https://example.com/"}},
            "$ref at #/properties/tags~0/anyOf/1/items leads out of the schema",
        ),
    ],
)
def test_what_xgrammar_passes_over_is_found(schema: dict[str, Any], told: str) -> None:
    assert told in (ignored(within(schema)) or "")


def test_references_that_lead_nowhere_are_found() -> None:
    schema = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    assert circular(schema) == "$ref at # leads back to itself"


def test_what_is_fine_is_not_told() -> None:
    schema = within({"enum": [{"not": 1, "multipleOf": 2}], "description": "not if"})
    assert [ignored(schema), circular(schema), malformed(schema)] == [None, None, None]
    named = {"$ref": "#/$defs/a", "type": "object", "title": "a", "additionalProperties": True}
    vacuous = {"format": "int32", "enum": [[1]], "minItems": 0, "uniqueItems": False, "items": {}}
    assert [ignored(within(named)), ignored(within(vacuous))] == [None, None]
    assert beyond_xgrammar(within({"type": "integer", "minimum": 3})) is None


def test_a_place_is_told_in_a_line_of_ascii() -> None:
    told = ignored({"type": "object", "properties": {"a\nß\x1b[2J" * 100: {"not": {}}}})
    assert told is not None
    assert told.isascii()
    assert told.isprintable()
    assert len(told) < 400
    json.dumps(told)
