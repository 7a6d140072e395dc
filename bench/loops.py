"""Sends requests in closed and open loops, and times the answers.

A closed loop keeps a number of requests running: a request starts when another has ended. An open
loop sends requests at given times, whether or not earlier ones have ended, as independent users do.
"""

import asyncio
import itertools
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from random import Random

# Sends request number n and returns the seconds to its first token.
Ask = Callable[[int], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Seen:
    """The requests a second of a load, and its times to the first token in seconds."""

    requests: int
    per_second: float
    ttft_p50: float
    ttft_p95: float


async def closed_loop(ask: Ask, *, at_once: int, requests: int, first: int = 0) -> Seen:
    """Keeps `at_once` requests running until `requests` have been answered."""
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


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended.

    Attributes:
        code: name of a gRPC code.
        ended: when it ended, on the clock of `time.perf_counter`.
        first: when its first token arrived, on the same clock; None if none arrived.
    """

    code: str
    ended: float
    first: float | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of a loop. All times but `due` are in seconds since the request was due.

    So the delay of a slow server or a slow generator shows in every time.

    Attributes:
        due: when the request was due, in seconds since the start.
        sent: how late the generator sent it.
        code: name of a gRPC code.
        ended: when the answer ended.
        first: when the first token arrived; None if none arrived.
        number: the number that the loop passed to `ask`.
    """

    due: float
    sent: float
    code: str
    ended: float
    first: float | None
    number: int


async def at_times(
    ask: Callable[[int], Awaitable[Outcome]], times: Iterable[float], *, at_once: int | None = None
) -> list[Arrival]:
    """Sends each request at its time, in seconds from now, whether or not earlier ones have ended.

    Returns when all have ended. With `at_once`, at most that many run: a further request waits, and
    its wait counts.
    """
    arrivals: list[Arrival] = []
    room = None if at_once is None else asyncio.Semaphore(at_once)
    began = time.perf_counter()

    async def one(number: int, due: float) -> None:
        sent = time.perf_counter()
        async with room or nullcontext():
            outcome = await ask(number)
        first = None if outcome.first is None else outcome.first - due
        arrivals.append(
            Arrival(due - began, sent - due, outcome.code, outcome.ended - due, first, number)
        )

    async with asyncio.TaskGroup() as group:
        for number, at in enumerate(times):
            due = began + at
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            group.create_task(one(number, due))
    return arrivals


async def open_loop(
    ask: Callable[[int], Awaitable[Outcome]],
    *,
    rate: float,
    seconds: float,
    seed: int = 0,
) -> list[Arrival]:
    """Sends `rate` requests a second for `seconds`, at the times of a Poisson process."""
    return await at_times(ask, poisson(rate, seconds, seed))


def poisson(rate: float, seconds: float, seed: int) -> Iterator[float]:
    random = Random(seed)
    at = random.expovariate(rate)
    while at < seconds:
        yield at
        at += random.expovariate(rate)


def gamma(rate: float, variation: float, seed: int) -> Iterator[float]:
    """Endless arrival times, whose gaps have a Gamma distribution.

    `variation` is the gaps' coefficient of variation: 1 is a Poisson process, more means bursts.
    """
    random = Random(seed)
    shape = 1 / variation**2
    at = 0.0
    while True:
        at += random.gammavariate(shape, 1 / (rate * shape))
        yield at


async def in_sessions(
    ask: Callable[[int], Awaitable[Outcome]], sessions: Iterable[Iterable[int]], *, at_once: int
) -> list[Arrival]:
    """Keeps `at_once` sessions running until all have ended.

    A session lists the numbers of its requests. A request is due when the previous one has ended.
    """
    waiting = iter(sessions)
    arrivals: list[Arrival] = []
    began = time.perf_counter()

    async def worker() -> None:
        for session in waiting:
            for number in session:
                due = time.perf_counter()
                arrivals.append(_arrival(number, due, began, await ask(number)))

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())
    return arrivals


async def keep_at_once(
    ask: Callable[[int], Awaitable[Outcome]], *, at_once: int, seconds: float
) -> list[Arrival]:
    """A closed loop for `seconds`: a request is due when the previous one has ended."""
    numbers = itertools.count()
    arrivals: list[Arrival] = []
    began = time.perf_counter()

    async def worker() -> None:
        while (due := time.perf_counter()) < began + seconds:
            number = next(numbers)
            arrivals.append(_arrival(number, due, began, await ask(number)))

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())
    return arrivals


def _arrival(number: int, due: float, began: float, outcome: Outcome) -> Arrival:
    """The arrival of a request that was sent the moment it was due."""
    first = None if outcome.first is None else outcome.first - due
    return Arrival(due - began, 0.0, outcome.code, outcome.ended - due, first, number)


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that is at least as large as `share` of all; NaN if there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
