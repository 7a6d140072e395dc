"""A closed-loop load of one kind of request, and what was seen."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

# Sends request number n and returns the seconds to its first token.
Ask = Callable[[int], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Seen:
    """Of one load: requests a second, and the time to the first token in seconds."""

    requests: int
    per_second: float
    ttft_p50: float
    ttft_p95: float


async def closed_loop(ask: Ask, *, at_once: int, requests: int, first: int = 0) -> Seen:
    """Keeps `at_once` requests under way until `requests` have been answered."""
    numbers = iter(range(first, first + requests))
    times: list[float] = []

    async def worker() -> None:
        while (number := next(numbers, None)) is not None:
            times.append(await ask(number))

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())
    seconds = time.perf_counter() - started
    times.sort()
    return Seen(
        requests=requests,
        per_second=requests / seconds,
        ttft_p50=statistics.median(times),
        ttft_p95=times[min(int(len(times) * 0.95), len(times) - 1)],
    )
