"""Finds the keywords of a schema that xgrammar does not enforce, and their places."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from pixtral_decoder.grammar.completion import KEYWORDS
from pixtral_decoder.grammar.patterns import located, pointer_part
from pixtral_decoder.vllm_hooks.structure_check import is_beyond_xgrammar

# xgrammar ignores these keywords silently, and an answer might not fit them.
_IGNORED = (
    *("not", "if", "dependentRequired", "dependentSchemas", "dependencies"),
    *("$dynamicRef", "$recursiveRef"),
)
# If a schema has one of these keywords, xgrammar ignores the bounds in the same schema.
_ALONE = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
# A format such as int32 beside listed values only says how a program stores them, so the decoder
# allows it there.
_BOUNDS = frozenset(_ALONE).union(*KEYWORDS.values()) - {"format"}
# A longer path would not help a person to find the keyword.
_LONGEST_PATH = 300


_TYPES = ("string", "number", "integer", "boolean", "null", "array", "object")


def malformed(schema: Any) -> str | None:
    """Describes a type that JSON Schema does not have, or a reference to nothing, in a schema.

    Call this only for a schema that does not compile. A schema that compiles may have such values
    under keywords that JSON Schema does not define.
    """
    for path, each in located(schema):
        types = each.get("type", [])
        if not all(one in _TYPES for one in (types if isinstance(types, list) else [types])):
            return f"type at {_shown(path)} must be of {', '.join(_TYPES)}"
        reference = each.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            continue
        if _resolved(schema, reference) is None:
            return f"$ref at {_shown(path)} names nothing in the schema: put it into $defs"
    return None


def ignored(schema: Any) -> str | None:
    """Names a keyword that xgrammar ignores, or a reference that it cannot follow."""
    for path, each in located(schema):
        for keyword in _IGNORED:
            if keyword in each:
                return not_enforced(keyword, path)
        alone = next((keyword for keyword in _ALONE if keyword in each), None)
        for keyword, value in each.items():
            if alone and keyword in _BOUNDS - {alone} and _bounds(keyword, value):
                return not_enforced(f"{keyword} beside {alone}", path)
        reference = each.get("$ref", "#")
        if isinstance(reference, str) and not reference.startswith("#"):
            return f"$ref at {_shown(path)} leads out of the schema: put what it names into $defs"
    return None


def circular(schema: Any) -> str | None:
    """Names a reference that leads only to other references and back: no answer can satisfy it."""
    for path, start in _references(schema):
        seen: set[str] = set()
        reference: Any = start
        while isinstance(reference, str):
            if reference in seen:
                return f"$ref at {_shown(path)} leads back to itself"
            seen.add(reference)
            found = _resolved(schema, reference)
            reference = found.get("$ref") if isinstance(found, dict) else None
    return None


def beyond_xgrammar(schema: Any) -> str | None:
    """Names the keywords because of which vLLM refuses a schema as beyond xgrammar."""
    if not isinstance(schema, dict) or not is_beyond_xgrammar(schema):
        return None
    path, inner = "#", schema
    while found := next(_beyond(path, inner), None):
        path, inner = found
    keywords = [
        keyword
        for keyword in inner
        if not is_beyond_xgrammar({name: at for name, at in inner.items() if name != keyword})
    ]
    # Each of `keywords` is a cause: without it, xgrammar would enforce this part. The list is empty
    # if several keywords are causes independently.
    told = " beside ".join(each for each in keywords if each != "type")
    return not_enforced(told or "the combination of keywords", path)


def not_enforced(keyword: str, path: str) -> str:
    return f"the engine cannot enforce {keyword} at {_shown(path)}: leave it out"


def _bounds(keyword: str, value: Any) -> bool:
    """Whether a keyword forbids anything with this value."""
    if keyword.startswith("min") and keyword != "minimum":
        return bool(value != 0)
    return value is not True and value != {} and value != [] and (keyword, value) != _NOT_UNIQUE


_NOT_UNIQUE = ("uniqueItems", False)


def _beyond(path: str, schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The direct parts of a schema that vLLM would refuse as schemas of their own."""
    for name, value in schema.items():
        inside = value if isinstance(value, list) else [value]
        for i, each in enumerate(inside):
            if isinstance(each, dict) and is_beyond_xgrammar(each):
                at = f"{path}/{pointer_part(name)}"
                yield (f"{at}/{i}" if isinstance(value, list) else at), each


def _references(schema: Any) -> Iterator[tuple[str, str]]:
    for path, each in located(schema):
        if isinstance(reference := each.get("$ref"), str):
            yield path, reference


def _resolved(schema: Any, reference: str) -> Any:
    """The part at a JSON pointer, or None."""
    for part in reference.removeprefix("#").split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if not isinstance(schema, dict) or name not in schema:
            return None
        schema = schema[name]
    return schema


def _shown(path: str) -> str:
    """The path in ASCII, on one line, cut at _LONGEST_PATH."""
    shown = json.dumps(path)[1:-1]
    return shown if len(shown) <= _LONGEST_PATH else f"{shown[:_LONGEST_PATH]}..."
