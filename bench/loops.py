"""Loads of one kind of request, and what was seen.

Closed: so many at once, each sent when another has ended. Open: so many a second, sent when they
are due, as strangers would.
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
    """One load's requests a second, and its times to the first token in seconds."""

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


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended: a gRPC code's name, and when, on `time.perf_counter`'s clock.

    `first` is when its first token came; None where there was none.
    """

    code: str
    ended: float
    first: float | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of an open loop. All times are seconds since `due`, the moment when it was to be
    sent: a generator or a server that falls behind makes them longer, and hides nothing.

    `sent` is how late the generator was; `first` is None where no token came. `number` is that
    which it was asked for with.
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
    """Sends each request at its time, in seconds from now, whatever has become of those before;
    returns once all have ended. `due` is since the begin.

    With `at_once`, no more than so many are under way: one that is due waits, and its wait counts.
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
    """Sends `rate` requests a second for so long, at the times of a Poisson process; see
    `at_times`."""
    return await at_times(ask, poisson(rate, seconds, seed))


def poisson(rate: float, seconds: float, seed: int) -> Iterator[float]:
    random = Random(seed)
    at = random.expovariate(rate)
    while at < seconds:
        yield at
        at += random.expovariate(rate)


def gamma(rate: float, variation: float, seed: int) -> Iterator[float]:
    """Endless times of arrivals in bursts: the gaps between them have a Gamma distribution, whose
    coefficient of variation is `variation`. 1 is a Poisson process."""
    random = Random(seed)
    shape = 1 / variation**2
    at = 0.0
    while True:
        at += random.gammavariate(shape, 1 / (rate * shape))
        yield at


async def in_sessions(
    ask: Callable[[int], Awaitable[Outcome]], sessions: Iterable[Iterable[int]], *, at_once: int
) -> list[Arrival]:
    """Keeps `at_once` sessions under way until all have ended. A session is the numbers of its
    requests, each of which is due when the one before it has ended."""
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
    """A closed loop for so long; a request is due when the one before it has ended."""
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
    """The arrival of a request that was asked at once when it was due."""
    first = None if outcome.first is None else outcome.first - due
    return Arrival(due - began, 0.0, outcome.code, outcome.ended - due, first, number)


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest of `values` that so large a share of them does not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
