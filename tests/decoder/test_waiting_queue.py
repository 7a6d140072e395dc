"""The queue before the engine, by a clock that the tests turn."""

from dataclasses import dataclass

import pytest
from prometheus_client import REGISTRY

from pixtral_core.errors import Overloaded
from pixtral_decoder.waiting_queue import MOST_RETRY_SECONDS, MOST_WAITING, WaitingQueue

RUNNING = 10


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WaitingQueue:
    return WaitingQueue(RUNNING, 30.0, clock)


def fill(queue: WaitingQueue) -> Overloaded:
    """Admits one after the other until one is refused."""
    for _ in range(2 * MOST_WAITING):
        try:
            queue.enter(1)
        except Overloaded as refusal:
            return refusal
    raise AssertionError("nothing is ever refused")


def serve(queue: WaitingQueue, clock: Clock, *, rate: float, seconds: float) -> None:
    """One ends and another comes, `rate` times a second, each having run as the rate makes it."""
    for _ in range(round(rate * seconds)):
        clock.now += 1 / rate
        queue.leave(1, RUNNING / rate)
        queue.enter(1)


def test_before_any_has_ended_as_many_wait_as_run(queue: WaitingQueue) -> None:
    assert queue.capacity == 2 * RUNNING
    fill(queue)
    assert queue.admitted == 2 * RUNNING


@pytest.mark.parametrize("rate", [0.5, 2.0, 20.0])
def test_the_queue_is_as_long_as_the_wait_in_it_may_be(
    queue: WaitingQueue, clock: Clock, rate: float
) -> None:
    for _ in range(RUNNING + 1):
        queue.enter(1)
    serve(queue, clock, rate=rate, seconds=120)
    refusal = fill(queue)
    assert queue.admitted - RUNNING == pytest.approx(30 * rate, rel=0.05, abs=1)
    assert queue.capacity == queue.admitted
    assert refusal.retry_after is not None
    assert 1 <= refusal.retry_after <= MOST_RETRY_SECONDS
    assert "would wait longer than 30 s" in refusal.message
    assert REGISTRY.get_sample_value("pixtral_decoder_requests_limit") == queue.capacity


def test_answers_that_ran_while_none_waited_tell_the_first_rate(
    queue: WaitingQueue, clock: Clock
) -> None:
    for _ in range(50):
        queue.enter(1)
        clock.now += 2.0
        queue.leave(1, 2.0)
    # Ten at once, for 2 s each, are 5 a second.
    fill(queue)
    assert queue.admitted - RUNNING == 150


def test_an_engine_that_ends_nothing_is_given_less_and_less(
    queue: WaitingQueue, clock: Clock
) -> None:
    for _ in range(RUNNING + 1):
        queue.enter(1)
    serve(queue, clock, rate=10, seconds=60)
    before = queue.capacity
    clock.now += 60
    after = queue.capacity
    assert RUNNING <= after < before / 2


def test_work_that_became_slower_shortens_the_queue(queue: WaitingQueue, clock: Clock) -> None:
    for _ in range(RUNNING + 1):
        queue.enter(1)
    serve(queue, clock, rate=10, seconds=60)
    serve(queue, clock, rate=1, seconds=240)
    assert queue.capacity - RUNNING == pytest.approx(30, abs=3)


def test_those_that_leave_before_they_run_are_no_work_done(
    queue: WaitingQueue, clock: Clock
) -> None:
    for _ in range(2 * RUNNING):
        queue.enter(1)
    for _ in range(RUNNING):
        clock.now += 0.01
        queue.leave(1, None)
    assert queue.capacity == 2 * RUNNING


def test_what_runs_at_once_is_never_refused(queue: WaitingQueue, clock: Clock) -> None:
    queue.enter(1)
    clock.now += 3600
    queue.leave(1, 3600)
    for _ in range(RUNNING):
        queue.enter(1)
    # One an hour for each of ten.
    with pytest.raises(Overloaded) as refusal:
        queue.enter(1)
    assert refusal.value.retry_after == MOST_RETRY_SECONDS


def test_a_request_that_is_alone_gets_in_whatever_it_asks_for(clock: Clock) -> None:
    queue = WaitingQueue(2, 0.0, clock)
    queue.enter(5)
    with pytest.raises(Overloaded):
        queue.enter(1)
    queue.leave(5, 1.0)
    assert queue.admitted == 0


def test_without_a_wait_nothing_waits(clock: Clock) -> None:
    queue = WaitingQueue(RUNNING, 0.0, clock)
    assert queue.capacity == RUNNING
    fill(queue)
    assert queue.admitted == RUNNING


def test_the_queue_has_an_end_at_any_rate(queue: WaitingQueue, clock: Clock) -> None:
    queue.enter(1)
    queue.leave(1, 0.001)
    fill(queue)
    assert queue.admitted == RUNNING + MOST_WAITING


def test_a_queue_that_one_tenant_fills_has_room_for_others(queue: WaitingQueue) -> None:
    for _ in range(2 * RUNNING):
        queue.enter(1, "eve")
    with pytest.raises(Overloaded):
        queue.enter(1, "eve")
    for tenant in ("bob", "ann"):
        queue.enter(2, tenant)
    # A quarter more, and nothing beyond it.
    queue.enter(1, "ann")
    with pytest.raises(Overloaded):
        queue.enter(1, "joe")
    # A request that goes makes room for tenants that have less than others.
    queue.leave(1, None, "bob")
    with pytest.raises(Overloaded):
        queue.enter(1, "eve")
    queue.enter(1, "joe")
