"""The SDK's `map` against a gateway that cannot take all: no storm, and nothing left behind."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from prometheus_client import REGISTRY

import pixtral_client
from pixtral.internal.v1 import decoder_pb2
from pixtral_client import BatchProgress
from tests.support.fake_tiers import FakeDecoder, Responses, answers, never_ends
from tests.support.gateway_harness import Client, eventually, permits
from tests.support.gateway_pictures import picture

COUNT = 200
CONCURRENCY = 24


@pytest.fixture
def max_concurrent_requests() -> int:
    """Fewer than `CONCURRENCY` by a third."""
    return 16


def about_images(count: int) -> Iterator[Any]:
    """Each about an image of its own."""
    for i in range(count):
        image = picture(32, 32, seed=i)
        yield [{"role": "user", "content": [image, f"What is in image {i}?"]}]


def refusals() -> float:
    labels = {"grpc_method": "Complete", "grpc_code": "RESOURCE_EXHAUSTED"}
    found = [
        sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "grpc_server_handled_total" and labels.items() <= sample.labels.items()
    ]
    return sum(found)


def answer_once_some_are_refused(decoders: list[FakeDecoder]) -> None:
    before = refusals()

    async def behave(request: decoder_pb2.GenerateRequest) -> Responses:
        await eventually(lambda: refusals() > before)
        async for response in answers(request):
            yield response

    for decoder in decoders:
        decoder.behaviours = [behave]


async def test_all_are_answered_in_order_without_a_storm(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    seen: list[BatchProgress] = []
    answer_once_some_are_refused(decoders)
    before = refusals()
    async with pixtral_client.AsyncClient(client.target, timeout=300) as sdk:
        outcomes = sdk.map(about_images(COUNT), concurrency=CONCURRENCY, progress=seen.append)
        found = [(outcome.index, outcome.unwrap().text) async for outcome in outcomes]
    assert found == [(i, "Hello world") for i in range(COUNT)]
    refused = refusals() - before
    assert 0 < refused <= 0.6 * COUNT
    assert seen[-1].sent == COUNT + refused
    assert seen[-1].is_over


async def test_the_sync_client_does_the_same(client: Client, decoders: list[FakeDecoder]) -> None:
    def run() -> list[int]:
        with pixtral_client.Client(client.target, timeout=300) as sdk:
            outcomes = sdk.map(about_images(COUNT), concurrency=CONCURRENCY)
            return [outcome.index for outcome in outcomes if outcome.unwrap().text]

    answer_once_some_are_refused(decoders)
    before = refusals()
    assert await asyncio.to_thread(run) == list(range(COUNT))
    assert 0 < refusals() - before <= 0.6 * COUNT


async def test_cancelled_in_the_middle_it_leaves_nothing(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [*[answers] * 10, never_ends]
    seen: list[BatchProgress] = []

    async def read() -> None:
        async with pixtral_client.AsyncClient(client.target, timeout=300) as sdk:
            conversations = about_images(COUNT)
            # The first in order may be refused, and wait for all that never end.
            async for _ in sdk.map(conversations, concurrency=CONCURRENCY, progress=seen.append):
                pass

    task = asyncio.create_task(read())
    await eventually(lambda: seen and seen[-1].answered and permits() >= 4)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen[-1].answered < COUNT
    await eventually(lambda: permits() == 0)
    assert not [task for task in asyncio.all_tasks() if "AsyncClient" in repr(task.get_coro())]


async def test_a_sync_map_that_is_closed_leaves_nothing(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    at_once = 8
    for decoder in decoders:
        decoder.behaviours = [*[answers] * at_once, never_ends]
    threads = set(threading.enumerate())
    sdk = pixtral_client.Client(client.target, timeout=300)

    def begin() -> Any:
        outcomes = sdk.map(about_images(COUNT), concurrency=at_once)
        next(outcomes)
        return outcomes

    outcomes = await asyncio.to_thread(begin)
    await eventually(permits)
    with closing(outcomes):
        pass
    await eventually(lambda: permits() == 0)
    sdk.close()
    left = {thread.name for thread in set(threading.enumerate()) - threads}
    assert not [name for name in left if name.startswith("pixtral-map")]
