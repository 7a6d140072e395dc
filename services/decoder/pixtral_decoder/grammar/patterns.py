"""Changes the patterns of a schema so that each match is a valid string of JSON.

xgrammar compiles a pattern for the text of the JSON, in which a quotation mark and a backslash must
be escaped. xgrammar excludes both from the matches of a pattern, except in two cases, which
`mended` and `needs_escapes` describe.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import xgrammar

# A character beyond ASCII, which may have a needless escape.
_BEYOND_ASCII = re.compile(r"(?<!\\)((?:\\\\)*)\\?([^\x00-\x7f])")
# Either a character class that begins with an escaped caret, or any escaped character: an escaped
# bracket begins no class.
_ESCAPED_CARET = re.compile(r"\\.|\[\\\^((?:\\.|[^\]\\])*)\]", re.DOTALL)
_MAY_NEED_ESCAPES = re.compile(r'["\\]')

# Keywords whose values contain schemas by name, and keywords whose values contain no schemas.
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_PLAIN = ("enum", "const", "default", "example", "examples")


def mended(schema: Any) -> Any:
    """The schema, with codes in its patterns in place of the characters beyond ASCII.

    If a pattern has such characters, xgrammar compiles the pattern in another way, which does not
    exclude the quotation mark and the backslash.
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
    """A schema and all schemas in it, at any depth, each with its JSON pointer.

    The result leaves out a value that only looks like a schema, such as an example.
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
    """A name in the spelling of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def patterns(schema: Any) -> Iterator[tuple[str, str]]:
    """All patterns of strings and of names, each with the JSON pointer of its schema."""
    for path, each in located(schema):
        if isinstance(pattern := each.get("pattern"), str):
            yield path, pattern
        if isinstance(names := each.get("patternProperties"), dict):
            yield from ((path, name) for name in names)


def needs_escapes(pattern: str) -> bool:
    """Whether matches of a pattern lead to a quotation mark or a backslash.

    If all matches do, xgrammar neither excludes nor escapes these two characters. If only some
    matches do, an answer may reach a point where no character can follow.
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
    # xgrammar writes no escapes itself, so that a quotation mark or a backslash here is from a
    # match.
    return bool(_MAY_NEED_ESCAPES.search(made[1:-1].decode("utf-8", "replace")))


_BYTES = [bytes([value]) for value in range(256)]
_WALKS = 32
_LONGEST = 64


def with_caret(expression: str) -> str:
    """The expression, with each escaped caret that begins a class moved to the end of the class.

    xgrammar treats a class that begins with an escaped caret as a negated class.
    """
    return _ESCAPED_CARET.sub(_caret_last, expression)


def _caret_last(found: re.Match[str]) -> str:
    others: str | None = found[1]
    if others is None:
        return found[0]
    if others.startswith("-") and len(others) > 1:
        # Here the caret begins a range. The range is split into the caret and the range from the
        # next character, which is the underscore.
        others = f"_{others}"
    others = others.lstrip("^")
    return f"[{others}\\^]" if others else r"\^"


def _spelled(pattern: str) -> str:
    spelled = _BEYOND_ASCII.sub(lambda found: f"{found[1]}{_by_code(ord(found[2]))}", pattern)
    return with_caret(spelled)


def _by_code(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\u{{{code:x}}}"
