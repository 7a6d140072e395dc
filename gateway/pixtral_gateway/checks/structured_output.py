"""Checks of what an answer is to be held to, and bounds for the decoder's work on it."""

import json
from collections.abc import Sequence
from typing import Any

from pixtral_core.errors import InvalidRequest
from pixtral_core.generation.sampling import Sampling, Structure, StructuredOutput

# Reading and compiling take longer with the text; these are many times what is seen in use.
MAX_SCHEMA_LENGTH = 1 << 15
MAX_REGEX_LENGTH = 1 << 12
MAX_GRAMMAR_LENGTH = 1 << 14
MAX_CHOICES = 256
MAX_CHOICE_LENGTH = 512
MAX_SCHEMA_DEPTH = 32

# Each could forbid every token that a structure leaves.
INCOMPATIBLE = ("min_tokens", "ignore_eos", "bad_words", "allowed_token_ids")


def check_structured_output(sampling: Sampling, wanted: StructuredOutput) -> None:
    """Raises InvalidRequest for a constraint that no engine can follow."""
    match wanted.structure:
        case Structure.JSON_SCHEMA:
            read_schema(wanted.values[0], wanted.path)
        case Structure.REGEX:
            _check_text(wanted.values[0], wanted.path, MAX_REGEX_LENGTH)
        case Structure.CHOICE:
            _check_choice(wanted.values, f"{wanted.path}.values")
        case Structure.GRAMMAR:
            _check_text(wanted.values[0], wanted.path, MAX_GRAMMAR_LENGTH)
        case Structure.JSON_OBJECT:
            pass
    if wanted.disable_any_whitespace and wanted.structure is not Structure.JSON_SCHEMA:
        raise InvalidRequest(
            "sampling.structured_output.disable_any_whitespace", "only together with json_schema"
        )
    for field in INCOMPATIBLE:
        if getattr(sampling, field):
            raise InvalidRequest(f"sampling.{field}", "not together with structured_output")


def read_schema(text: str, path: str) -> dict[str, Any]:
    """A JSON Schema that is not too large to be looked at. Raises InvalidRequest."""
    _check_text(text, path, MAX_SCHEMA_LENGTH)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequest(path, "is no JSON") from None
    if not isinstance(schema, dict):
        raise InvalidRequest(path, "must be a JSON object")
    if is_deeper(schema, MAX_SCHEMA_DEPTH):
        raise InvalidRequest(path, f"must nest at most {MAX_SCHEMA_DEPTH} deep")
    return schema


def _check_choice(values: Sequence[str], path: str) -> None:
    if not 0 < len(values) <= MAX_CHOICES:
        raise InvalidRequest(path, f"must hold 1 to {MAX_CHOICES}")
    for i, value in enumerate(values):
        _check_text(value, f"{path}[{i}]", MAX_CHOICE_LENGTH)


def _check_text(text: str, path: str, longest: int) -> None:
    if not 0 < len(text) <= longest:
        raise InvalidRequest(path, f"must have 1 to {longest} characters")
    if "\0" in text:
        raise InvalidRequest(path, "must have no NUL character")


def is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects nest more than so many deep."""
    level: list[Any] = [value]
    for _ in range(depth):
        level = [child for node in level for child in _children(node)]
    return any(isinstance(node, dict | list) for node in level)


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []
