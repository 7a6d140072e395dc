"""Why the gateway answers some requests otherwise than stock vLLM."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Difference:
    """An argument, and the names of the requests that it is for."""

    title: str
    argument: str
    requests: tuple[str, ...]


DIFFERENCES: tuple[Difference, ...] = ()


def by_request() -> Mapping[str, Difference]:
    """Raises ValueError for a request that has two arguments."""
    found: dict[str, Difference] = {}
    for difference in DIFFERENCES:
        for name in difference.requests:
            if name in found:
                raise ValueError(f"{name} has two arguments")
            found[name] = difference
    return found
