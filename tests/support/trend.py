"""How a measured value moves over time."""

import statistics
from dataclasses import dataclass
from itertools import combinations

# Growth that is allowed, by how the value's name ends: a share of the median, and an amount in any
# case. Allocators and Prometheus still move by the first, counts of calls by the second.
ALLOWED = {"memory MiB": (0.04, 8.0), "": (0.05, 3.0)}


@dataclass(frozen=True, slots=True)
class Trend:
    name: str
    median: float
    growth: float

    @property
    def allowed(self) -> float:
        share, least = next(a for end, a in ALLOWED.items() if self.name.endswith(end))
        return max(share * self.median, least)

    @property
    def grows(self) -> bool:
        return self.growth > self.allowed


def trend(name: str, times: list[float], values: list[float]) -> Trend:
    """What the Theil-Sen slope adds from the first of these times to the last."""
    slopes = [
        (b - a) / (later - earlier)
        for (earlier, a), (later, b) in combinations(zip(times, values, strict=True), 2)
    ]
    return Trend(
        name, statistics.median(values), statistics.median(slopes) * (times[-1] - times[0])
    )
