"""The capacity of a stack: the highest open-loop rate at which nothing is refused, nothing fails
and the p99 of the time to the first token is below twice that of the same requests one at a
time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.load import loaded

# Refusals that may be expected where none is to come: one run in twenty sees one.
FEW = 0.05
# The factor by which first tokens may be later than those of an idle stack.
TIMES_IDLE = 2.0
IDLE_SECONDS = 40.0
STEPS = 5
TRIES = 10
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Capacity:
    """`rate` in requests a second; `idle` is the p99 of an idle stack's first tokens, in seconds,
    and `most` what it may be; `answer` is how long an answer takes of a stack that has plenty of
    them, in seconds."""

    rate: float
    idle: float
    answer: float = 0.0

    @property
    def most(self) -> float:
        return TIMES_IDLE * self.idle

    def why_not_held(self, seen: Mapping[str, Any]) -> list[str]:
        """The faults at this rate or below; empty where there is none."""
        found = [] if not seen["refused"] else [f"{seen['refused']} refused"]
        return found + self.why_late(seen)

    def why_late(self, seen: Mapping[str, Any]) -> list[str]:
        """The same, but that any number may be refused."""
        found = [f"{count} {code}" for code, count in seen["failed"].items()]
        p99 = seen["ttft"]["p99"] if seen["ttft"] else float("inf")
        if p99 > self.most:
            found.append(f"first tokens' p99 {p99 * 1e3:.0f} ms of {self.most * 1e3:.0f}")
        return found


def unrefused(permits: int, answer: float, seconds: float) -> float:
    """The highest rate of Poisson arrivals of which hardly one in so many seconds finds all permits
    taken, where an answer takes `answer` seconds (Erlang's loss formula)."""
    low, high = 0.0, permits / answer
    while high - low > 0.01 * high:
        rate = (low + high) / 2
        lost = 1.0
        for taken in range(1, permits + 1):
            lost = rate * answer * lost / (taken + rate * answer * lost)
        low, high = (rate, high) if lost * rate * seconds < FEW else (low, rate)
    return low


async def find(url: str, seconds: float, **mix: float | str) -> Capacity:
    """It halves the rate, in steps of so many seconds, from the rate at which AT_ONCE requests at
    once are answered. Then it takes four times as long, at a tenth less each time, until the rate
    holds.

    Raises RuntimeError where it never does.
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
    # In a short time even what is too much may arrive evenly enough.
    for again in range(TRIES if low else 0):
        rate = low * (1 - again / TRIES)
        if await holds(rate, 4 * seconds, 20 + again):
            return Capacity(rate, idle, answer)
    raise RuntimeError("this stack holds no rate: the machine may be busy with something else")
