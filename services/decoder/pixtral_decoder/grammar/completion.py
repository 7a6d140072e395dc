"""Adds to a schema the types, items and properties that it implies.

xgrammar ignores the bounds of a string, a number or an array if the schema does not state the type.
If an array has a length but no `items`, xgrammar allows only the empty array. It ignores required
names that `properties` lacks. Every answer that fits the completed schema also fits the original.
"""

import copy
from typing import Any

from pixtral_decoder.grammar.patterns import located

# A schema with one of these keywords says itself which values it allows, and needs no type.
_SAYS_MORE = frozenset(("type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"))
KEYWORDS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "array": {
        *("items", "prefixItems", "minItems", "maxItems", "unevaluatedItems"),
        *("uniqueItems", "contains", "minContains", "maxContains"),
    },
    "object": {
        *("properties", "required", "additionalProperties", "unevaluatedProperties"),
        *("patternProperties", "propertyNames", "minProperties", "maxProperties"),
    },
}
"""For each type, the keywords that bound its values. They do not bound values of other types."""
_NAMES = frozenset(("properties", "patternProperties", "propertyNames", "additionalProperties"))


def completed(schema: Any) -> Any:
    """The schema with the types, items and properties that it implies."""
    made = copy.deepcopy(schema)
    for _, each in list(located(made)):
        _complete(each)
    return made


def _complete(schema: dict[str, Any]) -> None:
    if _SAYS_MORE.isdisjoint(schema):
        meant = [type_ for type_, words in KEYWORDS.items() if not words.isdisjoint(schema)]
        if meant:
            schema["type"] = meant[0] if len(meant) == 1 else meant
    types = schema.get("type")
    types = types if isinstance(types, list) else [types]
    has_length = not {"minItems", "maxItems"}.isdisjoint(schema)
    if "array" in types and has_length and {"items", "prefixItems"}.isdisjoint(schema):
        schema["items"] = {}
    if "object" in types:
        if not {"minProperties", "maxProperties"}.isdisjoint(schema) and _NAMES.isdisjoint(schema):
            schema["additionalProperties"] = True
        _list_required(schema)


def _list_required(schema: dict[str, Any]) -> None:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    others = schema.get("additionalProperties", {})
    if not isinstance(properties, dict) or not isinstance(required, list) or others is False:
        return
    if {"patternProperties", "propertyNames"}.isdisjoint(schema):
        missing = [name for name in required if isinstance(name, str) and name not in properties]
        if missing:
            rest = others if isinstance(others, dict) else {}
            schema["properties"] = {**properties, **dict.fromkeys(missing, rest)}
