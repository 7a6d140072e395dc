"""Checks of what an answer is to be held to, and bounds for the decoder's work on it."""

import json
from collections.abc import Sequence
from typing import Any

from pixtral.v1 import chat_pb2
from pixtral_core.errors import InvalidRequest

# Reading and compiling take longer with the text; these are many times what is seen in use.
MAX_SCHEMA_LENGTH = 1 << 15
MAX_REGEX_LENGTH = 1 << 12
MAX_GRAMMAR_LENGTH = 1 << 14
MAX_CHOICES = 256
MAX_CHOICE_LENGTH = 512
MAX_SCHEMA_DEPTH = 32

# Each could forbid every token that a structure leaves.
INCOMPATIBLE = ("min_tokens", "ignore_eos", "bad_words", "allowed_token_ids")


def check_structured_output(sampling: chat_pb2.SamplingParams) -> None:
    """Raises InvalidRequest for what no engine could hold an answer to."""
    wanted, path = sampling.structured_output, "sampling.structured_output"
    match wanted.WhichOneof("constraint"):
        case "json_schema":
            read_schema(wanted.json_schema, f"{path}.json_schema")
        case "regex":
            _check_text(wanted.regex, f"{path}.regex", MAX_REGEX_LENGTH)
        case "choice":
            _check_choice(wanted.choice.values, f"{path}.choice.values")
        case "grammar":
            _check_text(wanted.grammar, f"{path}.grammar", MAX_GRAMMAR_LENGTH)
        case "json_object":
            if not wanted.json_object:
                raise InvalidRequest(f"{path}.json_object", "must be true, or left out")
        case _:
            raise InvalidRequest(path, "must have one of its fields")
    if wanted.disable_any_whitespace and not wanted.json_schema:
        raise InvalidRequest(f"{path}.disable_any_whitespace", "only together with json_schema")
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
