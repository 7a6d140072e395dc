"""Writes limits as keywords of JSON Schema, for /openapi.json."""

import math
from dataclasses import dataclass
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from pixtral_core.limits import Count, Limit, Range

_COUNTED = {"characters": "Length", "entries": "Items"}


@dataclass(frozen=True, slots=True)
class Bounded:
    """Shows a limit in the schema of a field.

    pydantic does not check the limit. `pixtral_gateway.checks` does, with the same message for
    every API.
    """

    limit: Limit
    pattern: str | None = None

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        more = {} if self.pattern is None else {"pattern": self.pattern}
        return {**handler(core_schema), **keywords(self.limit), **more}


def keywords(limit: Limit) -> dict[str, Any]:
    """The keywords for a limit. They do not restrict values of other types, and thus allow null."""
    found: dict[str, float] = {}
    match limit:
        case Range():
            found["minimum" if limit.low_inclusive else "exclusiveMinimum"] = limit.low
            found["maximum"] = limit.high
        case Count():
            suffix = _COUNTED[limit.of]
            found[f"min{suffix}"] = limit.least or -math.inf
            found[f"max{suffix}"] = limit.most
    return {name: bound for name, bound in found.items() if math.isfinite(bound)}
