"""The capacity of a stack: the highest open-loop rate that meets three conditions.

The stack refuses no request, no request fails, and the p99 of the time to the first token stays
below twice that of an idle stack.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.load import loaded

# How many refusals `unrefused` accepts in the mean: one run in twenty sees one.
FEW = 0.05
# How many times later first tokens may come than on an idle stack.
TIMES_IDLE = 2.0
IDLE_SECONDS = 40.0
STEPS = 5
TRIES = 10
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Capacity:
    """A rate that a stack can answer, and the times by which later loads are judged.

    Attributes:
        rate: requests a second.
        idle: p99 of the time to the first token on an idle stack, in seconds.
        answer: mean time of a whole answer at full load, in seconds.
    """

    rate: float
    idle: float
    answer: float = 0.0

    @property
    def most(self) -> float:
        return TIMES_IDLE * self.idle

    def why_not_held(self, seen: Mapping[str, Any]) -> list[str]:
        """The faults that a load at this rate or below showed; empty if it showed none."""
        found = [] if not seen["refused"] else [f"{seen['refused']} refused"]
        return found + self.why_late(seen)

    def why_late(self, seen: Mapping[str, Any]) -> list[str]:
        """The same for a load above the rate, where refusals are no fault."""
        found = [f"{count} {code}" for code, count in seen["failed"].items()]
        p99 = seen["ttft"]["p99"] if seen["ttft"] else float("inf")
        if p99 > self.most:
            found.append(f"first tokens' p99 {p99 * 1e3:.0f} ms of {self.most * 1e3:.0f}")
        return found


def unrefused(permits: int, answer: float, seconds: float) -> float:
    """The highest rate at which about one run in twenty sees a refusal (Erlang's loss formula).

    Arrivals are Poisson. A run lasts `seconds`, and an answer occupies a permit for `answer`
    seconds.
    """
    low, high = 0.0, permits / answer
    while high - low > 0.01 * high:
        rate = (low + high) / 2
        lost = 1.0
        for taken in range(1, permits + 1):
            lost = rate * answer * lost / (taken + rate * answer * lost)
        low, high = (rate, high) if lost * rate * seconds < FEW else (low, rate)
    return low


async def find(url: str, seconds: float, **mix: float | str) -> Capacity:
    """Searches for the capacity, in runs of `seconds` each.

    It starts from the rate at which the stack answers AT_ONCE concurrent requests, and bisects
    below it. Then it confirms the rate in a run of four times that length, and lowers it by a
    tenth until it holds.

    Raises RuntimeError if no rate holds.
    """
    closed: dict[str, float | str] = {"request_rate": math.inf, **mix}
    await loaded(url, seconds=10, seed=1, max_concurrency=4, **closed)
    alone = await loaded(url, seconds=IDLE_SECONDS, max_concurrency=1, **closed)
    idle = alone["ttft"]["p99"]
    full = await loaded(url, seconds=seconds, max_concurrency=AT_ONCE, **closed)
    print(f"idle p99 {idle * 1e3:.0f} ms; {full['answered_per_second']:.1f}/s at most", flush=True)

    async def holds(rate: float, seconds: float, seed: int) -> bool:
        seen = await loaded(url, request_rate=rate, seconds=seconds, seed=seed, **mix)
        amiss = Capacity(rate, idle).why_not_held(seen)
        print(f"  {rate:.2f}/s for {seconds:g} s: {', '.join(amiss) or 'held'}", flush=True)
        return not amiss

    answer = full["e2el"]["mean"]
    low, high = 0.0, full["answered_per_second"]
    for step in range(STEPS):
        rate = (low + high) / 2
        low, high = (rate, high) if await holds(rate, seconds, 2 + step) else (low, rate)
    # Arrivals of a short run may be even by chance, and hide that the rate is too high.
    for again in range(TRIES if low else 0):
        rate = low * (1 - again / TRIES)
        if await holds(rate, 4 * seconds, 20 + again):
            return Capacity(rate, idle, answer)
    raise RuntimeError("this stack holds no rate: the machine may be busy with something else")
