import asyncio
import itertools
import math
import statistics
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from bench import loops
from bench.loops import Outcome, gamma, in_sessions, keep_at_once, open_loop, percentile


class Clock:
    """In place of the module `time`: only who sleeps or works on it makes it go on."""

    now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loops, "time", clock)
    virtual = SimpleNamespace(**{**vars(asyncio), "sleep": clock.sleep})
    monkeypatch.setattr(loops, "asyncio", virtual)
    return clock


@pytest.fixture
def at_once(clock: Clock) -> Callable[[int], Awaitable[Outcome]]:
    async def answer(_: int) -> Outcome:
        return Outcome("OK", clock.now, clock.now)

    return answer


async def test_an_open_loop_sends_whatever_has_become_of_the_requests_before(
    clock: Clock, at_once: Callable[[int], Awaitable[Outcome]]
) -> None:
    asked: list[int] = []
    stuck = asyncio.Event()

    async def ask(number: int) -> Outcome:
        asked.append(number)
        if len(asked) > 20:
            stuck.set()
        # The first one's answer waits for many that come after it.
        await stuck.wait()
        return Outcome("OK", clock.now)

    slow = await open_loop(ask, rate=200, seconds=0.3, seed=5)
    fast = await open_loop(at_once, rate=200, seconds=0.3, seed=5)

    assert asked == list(range(len(asked)))
    assert len(slow) == len(fast) > 20
    assert {each.first for each in slow} == {None}


async def test_times_count_from_when_a_request_was_due_and_not_from_when_it_was_sent(
    clock: Clock,
) -> None:
    async def ask(number: int) -> Outcome:
        if number == 0:
            # A generator that is held up, as by a machine that has no time for it.
            clock.now += 0.2
        return Outcome("OK", clock.now, clock.now)

    arrivals = await open_loop(ask, rate=200, seconds=0.3, seed=5)

    held_up = [each for each in arrivals if each.sent > 0.1]
    assert held_up
    for each in held_up:
        assert each.first is not None
        assert min(each.first, each.ended) >= each.sent


async def test_arrivals_are_those_of_the_rate_and_differ_by_seed(
    at_once: Callable[[int], Awaitable[Outcome]],
) -> None:
    one = await open_loop(at_once, rate=500, seconds=0.4, seed=1)
    other = await open_loop(at_once, rate=500, seconds=0.4, seed=2)
    assert 130 < len(one) < 270
    assert min(each.due for each in one) != min(each.due for each in other)


async def test_a_closed_loop_keeps_so_many_under_way(clock: Clock) -> None:
    under_way = 0
    most = 0

    async def ask(_: int) -> Outcome:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        clock.now += 1
        under_way -= 1
        return Outcome("OK", clock.now)

    arrivals = await keep_at_once(ask, at_once=4, seconds=10)
    assert most == 4
    # Each second one ends, and another is sent, except for the last four.
    assert len(arrivals) == 10 + 3


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2), (0.75, 3), (0.99, 4), (0.0, 1)])
def test_percentile(share: float, expected: float) -> None:
    assert percentile([4, 1, 3, 2], share) == expected


def test_percentile_of_nothing() -> None:
    assert math.isnan(percentile([], 0.5))


async def test_a_session_sends_a_request_when_the_one_before_it_has_ended(clock: Clock) -> None:
    under_way: list[int] = []
    most = 0

    async def ask(number: int) -> Outcome:
        nonlocal most
        assert number % 2 == 0 or number - 1 in ended
        under_way.append(number)
        most = max(most, len(under_way))
        await asyncio.sleep(0)
        clock.now += 1
        under_way.remove(number)
        ended.append(number)
        return Outcome("OK", clock.now, clock.now)

    ended: list[int] = []
    sessions = [[number, number + 1] for number in range(0, 10, 2)]
    arrivals = await in_sessions(ask, sessions, at_once=3)
    assert most == 3
    assert sorted(arrival.number for arrival in arrivals) == list(range(10))
    assert all(arrival.first == arrival.ended > 0 for arrival in arrivals)


@pytest.mark.parametrize("variation", [1.0, 2.2])
def test_gaps_vary_as_much_as_they_are_to(variation: float) -> None:
    times = list(itertools.islice(gamma(4.0, variation, seed=1), 20_000))
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean = statistics.fmean(gaps)
    assert 1 / mean == pytest.approx(4.0, rel=0.06)
    assert statistics.pstdev(gaps) / mean == pytest.approx(variation, rel=0.06)
