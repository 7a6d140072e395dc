import asyncio
import math
import time

import pytest

from bench.loops import Outcome, keep_at_once, open_loop, percentile


async def at_once(_: int) -> Outcome:
    return Outcome("OK", time.perf_counter(), time.perf_counter())


async def test_an_open_loop_sends_whatever_has_become_of_the_requests_before() -> None:
    asked: list[int] = []
    stuck = asyncio.Event()

    async def ask(number: int) -> Outcome:
        asked.append(number)
        if len(asked) > 20:
            stuck.set()
        # The first one's answer waits for many that come after it.
        await stuck.wait()
        return Outcome("OK", time.perf_counter())

    slow = await open_loop(ask, rate=200, seconds=0.3, seed=5)
    fast = await open_loop(at_once, rate=200, seconds=0.3, seed=5)

    assert asked == list(range(len(asked)))
    assert len(slow) == len(fast) > 20
    assert {each.first for each in slow} == {None}


async def test_times_count_from_when_a_request_was_due_and_not_from_when_it_was_sent() -> None:
    async def ask(number: int) -> Outcome:
        if number == 0:
            # A generator that is held up, as by a machine that has no time for it.
            time.sleep(0.2)  # noqa: ASYNC251
        return Outcome("OK", time.perf_counter(), time.perf_counter())

    arrivals = await open_loop(ask, rate=200, seconds=0.3, seed=5)

    held_up = [each for each in arrivals if each.sent > 0.1]
    assert held_up
    for each in held_up:
        assert each.first is not None
        assert min(each.first, each.ended) >= each.sent


async def test_arrivals_are_those_of_the_rate_and_differ_by_seed() -> None:
    one = await open_loop(at_once, rate=500, seconds=0.4, seed=1)
    other = await open_loop(at_once, rate=500, seconds=0.4, seed=2)
    assert 130 < len(one) < 270
    assert min(each.due for each in one) != min(each.due for each in other)


async def test_a_closed_loop_keeps_so_many_under_way() -> None:
    under_way = 0
    most = 0

    async def ask(_: int) -> Outcome:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return Outcome("OK", time.perf_counter())

    arrivals = await keep_at_once(ask, at_once=4, seconds=0.05)
    assert most == 4
    assert len(arrivals) > 4


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2), (0.75, 3), (0.99, 4), (0.0, 1)])
def test_percentile(share: float, expected: float) -> None:
    assert percentile([4, 1, 3, 2], share) == expected


def test_percentile_of_nothing() -> None:
    assert math.isnan(percentile([], 0.5))
