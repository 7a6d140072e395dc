"""Which request of a batch is sent next, against gateways simulated on a clock of their own."""

import heapq
import io
import itertools
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from pixtral_client import BatchProgress, Completion, Overloaded, Timings, Unavailable, Usage
from pixtral_client.batch import Batch, Item, _Line
from pixtral_client.errors import PixtralError

ANSWER = Completion(
    id="1",
    model="pixtral",
    text="A cat.",
    token_ids=(),
    finish_reason="stop",
    usage=Usage(1, 0, 0, 1),
    timings=Timings(0.0, 0.0, 0.0, 0.0),
    images=(),
    logprobs=(),
    choices=(),
)


class Simulated:
    """A gateway that refuses beyond `permits` requests at once, beyond `rate` a second after a
    `burst`, and each `one_of`th in any case; `latency` is the time of an answer."""

    def __init__(
        self,
        *,
        permits: int = 10**6,
        rate: float = 1e6,
        burst: float = 1e6,
        one_of: int = 0,
        latency: float = 0.1,
    ) -> None:
        self.now = 0.0
        self.permits, self.rate, self.burst = permits, rate, burst
        self.one_of, self.latency = one_of, latency
        self.sent = self.refused = self.most = 0
        self._running = 0
        self._level, self._since = burst, 0.0
        self._numbers = itertools.count()
        self._ends: list[tuple[float, int, Item, PixtralError | None]] = []

    def send(self, item: Item) -> None:
        self.sent += 1
        self._level = min(self.burst, self._level + (self.now - self._since) * self.rate)
        self._since = self.now
        error: PixtralError | None = None
        if self._running >= self.permits or (self.one_of and self.sent % self.one_of == 0):
            error = full(1.0)
        elif self._level < 1.0:
            error = full((1.0 - self._level) / self.rate)
        else:
            self._level -= 1.0
            self._running += 1
            self.most = max(self.most, self._running)
        self.refused += error is not None
        after = 0.001 if error else self.latency
        heapq.heappush(self._ends, (self.now + after, next(self._numbers), item, error))

    def run(self, batch: Batch[Completion]) -> list[int]:
        """Does what a client's `map` does; returns the indexes in the order in which they come."""
        came = []
        while True:
            came += [outcome.index for outcome in batch.ready()]
            if batch.is_over:
                return came
            while item := batch.take():
                self.send(item)
            wait = batch.wait()
            assert self._ends or wait is not None, "it waits for ever"
            if self._ends and (wait is None or self._ends[0][0] <= self.now + wait):
                self.now, _, item, error = heapq.heappop(self._ends)
                if error is None:
                    self._running -= 1
                    batch.answered(item, ANSWER)
                else:
                    batch.again(item, error, (error.retry_after or 0.0) * 1.1)
            else:
                self.now += wait or 0.0


def full(retry_after: float) -> Overloaded:
    return Overloaded(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", retry_after=retry_after)


def conversations(count: int) -> list[Any]:
    return [[{"role": "user", "content": f"{i}"}] for i in range(count)]


def batch_of(
    count: int, concurrency: int, simulated: Simulated, seen: list[BatchProgress] | None = None
) -> Batch[Completion]:
    report = seen.append if seen is not None else None
    return Batch(conversations(count), concurrency, report, clock=lambda: simulated.now)


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"permits": 1},
        {"permits": 16},
        {"permits": 42},
        {"rate": 10.0, "burst": 1.0},
        {"rate": 100.0, "burst": 500.0},
        {"rate": 5.0, "burst": 1.0, "latency": 0.01},
        {"rate": 0.5, "burst": 1.0, "latency": 3.0},
        {"one_of": 3},
    ],
)
def test_all_are_answered_in_order_without_a_storm(limits: Any) -> None:
    gateway = Simulated(**limits)
    assert gateway.run(batch_of(2000, 64, gateway)) == list(range(2000))
    assert gateway.sent <= 1.6 * 2000
    assert (gateway.refused > 0) == bool(limits)


def test_as_many_run_as_the_gateway_lets_in() -> None:
    gateway = Simulated(permits=16)
    gateway.run(batch_of(2000, 64, gateway))
    assert gateway.most == 16
    assert gateway.now < 1.3 * 2000 * 0.1 / 16


def test_refusals_that_no_pause_prevents_cost_their_own_delay_alone() -> None:
    gateway = Simulated(one_of=3)
    gateway.run(batch_of(2000, 64, gateway))
    # Each refusal delays by 1.1 seconds, and the answers take a tenth of a second each.
    assert gateway.now < 1.2 * (gateway.refused * 1.1 + 2000 * 0.1)


def test_it_runs_no_more_than_it_may() -> None:
    gateway = Simulated()
    gateway.run(batch_of(100, 7, gateway))
    assert gateway.most == 7


def test_it_uses_room_that_comes_later() -> None:
    gateway = Simulated(permits=2)
    batch = batch_of(3000, 32, gateway)
    while item := batch.take():
        gateway.send(item)
    assert gateway.refused == 30
    gateway.permits = 1000
    gateway.run(batch)
    assert gateway.most == 32


def test_the_input_is_read_as_it_goes() -> None:
    read = 0

    def endless() -> Iterator[Any]:
        nonlocal read
        for i in itertools.count():
            read += 1
            yield [{"role": "user", "content": f"{i}"}]

    gateway = Simulated()
    batch: Batch[Completion] = Batch(endless(), 4, None, clock=lambda: gateway.now)
    first = batch.take()
    assert first is not None
    for _ in range(100):
        while item := batch.take():
            batch.answered(item, ANSWER)
    assert read == 16, "the first is still to come"
    assert batch.wait() is None


def test_a_failed_one_is_an_outcome_among_the_others() -> None:
    gateway = Simulated()
    batch = batch_of(3, 3, gateway)
    items = [batch.take() for _ in range(3)]
    assert batch.take() is None
    error = Unavailable(grpc.StatusCode.UNAVAILABLE, "gone")
    for item in reversed(items):
        assert item is not None
        if item.index == 1:
            batch.failed(item, error)
        else:
            batch.answered(item, ANSWER)
    assert batch.take() is None
    outcomes = list(batch.ready())
    assert [outcome.error for outcome in outcomes] == [None, error, None]
    assert outcomes[0].unwrap() is ANSWER
    with pytest.raises(Unavailable):
        outcomes[1].unwrap()


def test_progress_counts_what_is_sent_and_ends_once() -> None:
    seen: list[BatchProgress] = []
    gateway = Simulated(permits=5)
    gateway.run(batch_of(50, 10, gateway, seen))
    assert [progress.is_over for progress in seen].count(True) == 1
    last = seen[-1]
    assert last.is_over
    assert (last.answered, last.failed, last.total, last.sent) == (50, 0, 50, gateway.sent)
    assert max(progress.waiting for progress in seen) > 0


def test_the_line_of_progress_says_how_far_it_is() -> None:
    stream = io.StringIO()
    line = _Line(stream)
    line(BatchProgress(20, 1, 4, 3, 30, 100, 2.0, is_over=False))
    line(BatchProgress(21, 1, 4, 3, 30, 100, 2.1, is_over=False))
    line(BatchProgress(98, 2, 0, 0, 130, 100, 10.0, is_over=True))
    line.close()
    assert stream.getvalue().splitlines() == [
        "[#####...................]  21/100  10.5/s  0:08 left  1 failed  3 to be sent again",
        "[########################]  100/100  10.0/s  2 failed",
    ]
