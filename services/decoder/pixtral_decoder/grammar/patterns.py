"""Patterns of a schema, so that what follows them is a string of JSON.

xgrammar compiles a pattern for the text of the JSON, in which a quotation mark and a backslash are
escaped. It leaves both out of what a pattern allows, except in two cases.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import xgrammar

# A character beyond ASCII, which may needlessly be escaped.
_BEYOND_ASCII = re.compile(r"(?<!\\)((?:\\\\)*)\\?([^\x00-\x7f])")
# A class that begins with one, or what is escaped and begins none.
_ESCAPED_CARET = re.compile(r"\\.|\[\\\^((?:\\.|[^\]\\])*)\]", re.DOTALL)
_MAY_NEED_ESCAPES = re.compile(r'["\\]')

# The first hold schemas by name; the second hold none.
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_PLAIN = ("enum", "const", "default", "example", "examples")


def mended(schema: Any) -> Any:
    """The schema, the characters of its patterns that are beyond ASCII by their codes.

    Where a pattern has them as they are, xgrammar compiles all of it in another way, which leaves
    neither the quotation mark nor the backslash out of what it allows.
    """
    if isinstance(schema, list):
        return list(map(mended, schema))
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword == "pattern" and isinstance(value, str):
            made[keyword] = _spelled(value)
        elif keyword in _NAMED and isinstance(value, dict):
            name: Callable[[str], str] = _spelled if keyword == "patternProperties" else str
            made[keyword] = {name(each): mended(inner) for each, inner in value.items()}
        else:
            made[keyword] = value if keyword in _PLAIN else mended(value)
    return made


def located(schema: Any, path: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """A schema and all schemas in it, however deep, each with the JSON pointer to it.

    A value that only looks like a schema is left out.
    """
    if isinstance(schema, list):
        for i, each in enumerate(schema):
            yield from located(each, f"{path}/{i}")
    if not isinstance(schema, dict):
        return
    yield path, schema
    for keyword, value in schema.items():
        at = f"{path}/{pointer_part(keyword)}"
        if keyword in _NAMED and isinstance(value, dict):
            for name, inner in value.items():
                yield from located(inner, f"{at}/{pointer_part(name)}")
        elif keyword not in _PLAIN:
            yield from located(value, at)


def pointer_part(name: str) -> str:
    """A name as a JSON pointer has it."""
    return name.replace("~", "~0").replace("/", "~1")


def patterns(schema: Any) -> Iterator[tuple[str, str]]:
    """All patterns of strings and of names, each with the JSON pointer to its schema."""
    for path, each in located(schema):
        if isinstance(pattern := each.get("pattern"), str):
            yield path, pattern
        if isinstance(names := each.get("patternProperties"), dict):
            yield from ((path, name) for name in names)


def needs_escapes(pattern: str) -> bool:
    """Whether what a pattern allows leads to a quotation mark or a backslash.

    Where all of it does, xgrammar does not leave them out, and does not escape them. Where some
    does, an answer may come to where nothing can follow.
    """
    if not _MAY_NEED_ESCAPES.search(pattern):
        return False
    vocabulary = xgrammar.TokenizerInfo(_BYTES, vocab_size=len(_BYTES), stop_token_ids=[0])
    compiler = xgrammar.GrammarCompiler(vocabulary, max_threads=1, cache_enabled=False)
    wanted = json.dumps({"type": "string", "pattern": _spelled(pattern)})
    compiled = compiler.compile_json_schema(wanted)
    return any(_leads_to_one(compiled) for _ in range(_WALKS))


def _leads_to_one(compiled: xgrammar.CompiledGrammar) -> bool:
    matcher = xgrammar.GrammarMatcher(compiled)
    mask = xgrammar.allocate_token_bitmask(1, len(_BYTES))
    made = bytearray()
    while len(made) < _LONGEST:
        matcher.fill_next_token_bitmask(mask, 0)
        may_come = int.from_bytes(mask[0].numpy().tobytes(), "little")
        if not may_come:
            return True
        if may_come & 1:
            break
        byte = secrets.choice([code for code in range(256) if may_come >> code & 1])
        matcher.accept_token(byte)
        made.append(byte)
    # It writes no escapes by itself.
    return bool(_MAY_NEED_ESCAPES.search(made[1:-1].decode("utf-8", "replace")))


_BYTES = [bytes([value]) for value in range(256)]
_WALKS = 32
_LONGEST = 64


def with_caret(expression: str) -> str:
    """The expression, the escaped caret that begins a class at its end instead.

    xgrammar takes such a class for one of what is not in it.
    """
    return _ESCAPED_CARET.sub(_caret_last, expression)


def _caret_last(found: re.Match[str]) -> str:
    others: str | None = found[1]
    if others is None:
        return found[0]
    if others.startswith("-") and len(others) > 1:
        # A range from the caret on is the caret, and one from what is next.
        others = f"_{others}"
    others = others.lstrip("^")
    return f"[{others}\\^]" if others else r"\^"


def _spelled(pattern: str) -> str:
    spelled = _BEYOND_ASCII.sub(lambda found: f"{found[1]}{_by_code(ord(found[2]))}", pattern)
    return with_caret(spelled)


def _by_code(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\u{{{code:x}}}"
