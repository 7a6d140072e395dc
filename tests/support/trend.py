"""The trend of a measured value over time."""

import statistics
from dataclasses import dataclass
from itertools import combinations

# Allowed growth by the end of the value's name: a share of the median, or a minimum. Allocators and
# Prometheus vary within the first, counts of calls within the second.
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
    """The growth between the first time and the last, by the Theil-Sen slope."""
    slopes = [
        (b - a) / (later - earlier)
        for (earlier, a), (later, b) in combinations(zip(times, values, strict=True), 2)
    ]
    return Trend(
        name, statistics.median(values), statistics.median(slopes) * (times[-1] - times[0])
    )
