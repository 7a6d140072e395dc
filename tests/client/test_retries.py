"""A request that was refused is sent again, after a while and not for ever."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from pixtral_client import AsyncClient, Client, InvalidRequest, Overloaded, Unavailable
from pixtral_client.errors import PixtralError
from pixtral_client.retries import BUDGET_TOKENS, LONGEST_WAIT, RetryBudget, Tries
from tests.support.fake_gateway import BAD_IMAGE, WORDS, FakeGateway, failure, refusal, serving

HELLO = [{"role": "user", "content": "Hello"}]
SOON = refusal(0.001)
CALLS: list[Callable[[Client], Any]] = [
    lambda client: client.chat(HELLO).text,
    lambda client: [delta.text for delta in client.stream(HELLO)],
    lambda client: client.count_tokens(HELLO),
    lambda client: client.models(),
    lambda client: client.put_image(b"an image"),
]


def overloaded(retry_after: float | None = 1.0) -> Overloaded:
    return Overloaded(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", retry_after=retry_after)


def gone() -> Unavailable:
    return Unavailable(grpc.StatusCode.UNAVAILABLE, "gone")


def tries(
    left: float = 1000.0, most: int = 2, budget: RetryBudget | None = None, **more: Any
) -> Tries:
    return Tries(lambda: left, most, budget or RetryBudget(), **more)


def waits(tries: Tries, error: PixtralError) -> list[float]:
    """Its waits after failures in a row, until it gives up."""
    found: list[float] = []
    while (wait := tries.wait_after(error)) is not None and len(found) < 50:
        found.append(wait)
    return found


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()
    with serving(fake) as address:
        fake.address = address
        yield fake


@pytest.mark.parametrize("call", CALLS)
def test_a_refused_request_is_sent_again(
    gateway: FakeGateway, call: Callable[[Client], Any]
) -> None:
    with Client(gateway.address, timeout=60) as client:
        expected = call(client)
        gateway.requests = []
        gateway.failures = [SOON, SOON]
        assert call(client) == expected
    assert len(gateway.requests) == 3


@pytest.mark.parametrize("call", CALLS)
def test_no_more_often_than_it_may(gateway: FakeGateway, call: Callable[[Client], Any]) -> None:
    gateway.failure = SOON
    for most in (0, 1):
        gateway.requests = []
        with (
            Client(gateway.address, timeout=60, max_retries=most) as client,
            pytest.raises(Overloaded),
        ):
            call(client)
        assert len(gateway.requests) == 1 + most


def test_a_wrong_request_is_sent_once(gateway: FakeGateway) -> None:
    gateway.failure = BAD_IMAGE
    with Client(gateway.address, timeout=60) as client, pytest.raises(InvalidRequest):
        client.chat(HELLO)
    assert len(gateway.requests) == 1


def test_a_stream_that_has_begun_is_not_begun_again(gateway: FakeGateway) -> None:
    gateway.breaks = SOON
    with Client(gateway.address, timeout=60) as client, client.stream(HELLO) as stream:
        assert next(stream).text == WORDS[0]
        with pytest.raises(Overloaded):
            next(stream)
    assert len(gateway.requests) == 1


async def test_the_asyncio_client_does_the_same(gateway: FakeGateway) -> None:
    async with AsyncClient(gateway.address, timeout=60) as client:
        gateway.failures = [SOON, SOON]
        assert (await client.chat(HELLO)).text == "".join(WORDS)
        gateway.failures = [SOON, SOON]
        assert [delta.text async for delta in await client.stream(HELLO)] == WORDS
        assert len(gateway.requests) == 6
        gateway.requests = []
        gateway.breaks = SOON
        with pytest.raises(Overloaded):
            async for _ in await client.stream(HELLO):
                pass
        gateway.failure = SOON
        with pytest.raises(Overloaded):
            await client.models()
    assert len(gateway.requests) == 4


async def test_cancelling_ends_the_wait(gateway: FakeGateway) -> None:
    gateway.failure = refusal(30.0)
    async with AsyncClient(gateway.address, timeout=600) as client:
        task = asyncio.create_task(client.chat(HELLO))
        while not gateway.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(gateway.requests) == 1


def test_the_wait_is_at_least_what_the_server_asks_for_and_spread() -> None:
    found = [wait for _ in range(100) for wait in waits(tries(), overloaded(3.0))]
    assert len(found) == 200
    assert all(3.0 <= wait <= 3.75 for wait in found)
    assert len(set(found)) > 100


def test_without_a_time_the_wait_grows_up_to_a_bound() -> None:
    found = waits(tries(most=10), gone())
    assert len(found) == 10
    assert 0.375 <= found[0] <= 0.5
    assert found[2] > found[0]
    assert all(wait <= LONGEST_WAIT for wait in found)


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    assert waits(tries(left=2.0), overloaded(3.0)) == []


def test_other_errors_are_final() -> None:
    for code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED):
        assert waits(tries(), PixtralError(code, "no")) == []


def test_a_batch_is_patient_with_refusals_alone() -> None:
    assert len(waits(tries(is_patient=True), overloaded())) == 50
    assert len(waits(tries(is_patient=True), gone())) == 2


def test_a_server_that_is_down_is_soon_asked_once_for_each_request() -> None:
    budget = RetryBudget()
    for _ in range(int(BUDGET_TOKENS)):
        tries(budget=budget).wait_after(gone())
    assert waits(tries(budget=budget), gone()) == []
    for _ in range(int(BUDGET_TOKENS) * 10):
        tries(budget=budget).answered()
    assert len(waits(tries(budget=budget), gone())) == 2


def test_refusals_with_a_time_leave_the_budget_alone() -> None:
    budget = RetryBudget()
    for _ in range(int(BUDGET_TOKENS)):
        tries(budget=budget).wait_after(overloaded())
    assert budget.has_room


def test_an_unavailable_gateway_may_come_back(gateway: FakeGateway) -> None:
    gateway.failures = [failure(grpc.StatusCode.UNAVAILABLE, "restarting")]
    with Client(gateway.address, timeout=60) as client:
        assert client.chat(HELLO).text == "".join(WORDS)
    assert len(gateway.requests) == 2
