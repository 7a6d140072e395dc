"""What a stack can take: the highest open-loop rate at which nothing is refused, nothing fails and
the p99 of the time to the first token is below twice that of the same requests one at a time."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.load import loaded

# By which first tokens may be later than those of an idle stack.
TIMES_IDLE = 2.0
IDLE_SECONDS = 40.0
STEPS = 5
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Capacity:
    """`rate` in requests a second; `idle` is the p99 of an idle stack's first tokens, in seconds,
    and `most` what it may be."""

    rate: float
    idle: float

    @property
    def most(self) -> float:
        return TIMES_IDLE * self.idle

    def why_not_held(self, seen: Mapping[str, Any]) -> list[str]:
        """What is not as it should be at this rate or below; empty where all is."""
        found = [] if not seen["refused"] else [f"{seen['refused']} refused"]
        return found + self.why_late(seen)

    def why_late(self, seen: Mapping[str, Any]) -> list[str]:
        """The same, but that any number may be refused."""
        found = [f"{count} {code}" for code, count in seen["failed"].items()]
        p99 = seen["ttft"]["p99"] if seen["ttft"] else float("inf")
        if p99 > self.most:
            found.append(f"first tokens' p99 {p99 * 1e3:.0f} ms of {self.most * 1e3:.0f}")
        return found


async def find(url: str, seconds: float, **mix: float | str) -> Capacity:
    """By halving, in steps of so many seconds, from what AT_ONCE at once are answered with."""
    closed: dict[str, float | str] = {"request_rate": math.inf, **mix}
    await loaded(url, seconds=10, seed=1, max_concurrency=4, **closed)
    alone = await loaded(url, seconds=IDLE_SECONDS, max_concurrency=1, **closed)
    idle = alone["ttft"]["p99"]
    full = await loaded(url, seconds=seconds, max_concurrency=AT_ONCE, **closed)
    low, high = 0.0, full["answered_per_second"]
    print(f"idle p99 {idle * 1e3:.0f} ms; {high:.1f} answers a second at most", flush=True)
    for step in range(STEPS):
        rate = (low + high) / 2
        seen = await loaded(url, request_rate=rate, seconds=seconds, seed=2 + step, **mix)
        amiss = Capacity(rate, idle).why_not_held(seen)
        print(f"  {rate:.2f}/s: {', '.join(amiss) or 'held'}", flush=True)
        low, high = (low, rate) if amiss else (rate, high)
        await asyncio.sleep(1)
    return Capacity(low, idle)
