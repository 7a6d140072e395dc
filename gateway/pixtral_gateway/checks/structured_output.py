"""Checks of schemas, patterns and grammars that a completion must follow."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from pixtral_core import limits
from pixtral_core.errors import InvalidRequest
from pixtral_core.generation.sampling import Sampling, Structure, StructuredOutput

# Each of these fields could forbid every token that a structure allows.
INCOMPATIBLE = ("min_tokens", "ignore_eos", "bad_words", "allowed_token_ids")


def check_structured_output(sampling: Sampling, wanted: StructuredOutput) -> None:
    """Raises InvalidRequest for a constraint that no engine can follow."""
    match wanted.structure:
        case Structure.JSON_SCHEMA:
            read_schema(wanted.values[0], wanted.path)
        case Structure.REGEX:
            _check_text(wanted.values[0], wanted.path, limits.REGEX_CHARACTERS)
        case Structure.CHOICE:
            _check_choice(wanted.values, f"{wanted.path}.values")
        case Structure.GRAMMAR:
            _check_text(wanted.values[0], wanted.path, limits.GRAMMAR_CHARACTERS)
        case Structure.JSON_OBJECT:
            pass
    if wanted.disable_any_whitespace and wanted.structure is not Structure.JSON_SCHEMA:
        raise InvalidRequest(
            "sampling.structured_output.disable_any_whitespace",
            "needs a JSON Schema: leave it out",
        )
    for field in INCOMPATIBLE:
        if getattr(sampling, field):
            raise InvalidRequest(
                f"sampling.{field}", "cannot be combined with a structured output: leave it out"
            )


def read_schema(text: str, path: str) -> dict[str, Any]:
    """A JSON Schema within the limits of size. Raises InvalidRequest."""
    _check_text(text, path, limits.SCHEMA_CHARACTERS)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequest(path, "is not JSON") from None
    if not isinstance(schema, dict):
        raise InvalidRequest(path, "must be a JSON object")
    check_depth(schema, path, limits.SCHEMA_DEPTH)
    return schema


def _check_choice(values: Sequence[str], path: str) -> None:
    limits.CHOICES.check(len(values), path)
    for i, value in enumerate(values):
        _check_text(value, f"{path}[{i}]", limits.CHOICE_LENGTH)


def _check_text(text: str, path: str, length: limits.Count) -> None:
    length.check(len(text), path)
    if "\0" in text:
        raise InvalidRequest(path, "must not have a NUL character")


def check_depth(value: Any, path: str, allowed: limits.Count) -> None:
    """Raises InvalidRequest if lists and objects nest deeper than `allowed`."""
    depth, level = 0, _nested([value])
    while level and allowed.allows(depth):
        depth, level = depth + 1, _nested(child for node in level for child in _children(node))
    allowed.check(depth, path)


def _nested(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]


def _children(node: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node
