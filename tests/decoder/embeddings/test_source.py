"""Where embeddings come from, with a real Redis and a real encoder service to fetch from."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import torch
from prometheus_client import REGISTRY

from pixtral.internal.v1 import encoder_pb2, encoder_pb2_grpc
from pixtral_core.cache.embedding_key import EmbeddingKey, from_proto
from pixtral_core.cache.embedding_store import EmbeddingStore
from pixtral_core.cache.wire_format import DType
from pixtral_core.model.vision_spec import Grid
from pixtral_core.telemetry.request_log import Call
from pixtral_core.telemetry.tracing import start_tracing
from pixtral_decoder.embeddings.memory_files import SPARES
from pixtral_decoder.embeddings.source import EmbeddingMissing, EmbeddingSource, PeerEncoders
from pixtral_decoder.request import ImagePlace
from tests.decoder.memory import until
from tests.decoder.prompts import WIDTH, eventually, key_of, store, values, wire
from tests.support.redis_server import RedisServer
from tests.support.stack.span_collector import collector

GRID = Grid(3, 5)


class EncoderWithValues(encoder_pb2_grpc.EncoderServiceServicer):
    """Streams what it is given, in pieces; holds every answer back while `gate` is closed."""

    def __init__(self) -> None:
        self.values: dict[EmbeddingKey, bytes] = {}
        self.calls = 0
        self.metadata: dict[str, str] = {}
        self.gone = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def Fetch(  # noqa: N802 - the proto's name
        self, request: encoder_pb2.FetchRequest, context: Any
    ) -> AsyncGenerator[encoder_pb2.FetchResponse]:
        self.calls += 1
        self.metadata = dict(context.invocation_metadata())
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.gone += 1
            raise
        value = self.values.get(from_proto(request.key))
        if value is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "not held")
            return
        for begin in range(0, len(value), 1000):
            yield encoder_pb2.FetchResponse(data=value[begin : begin + 1000])


class Peer:
    def __init__(self, address: str, servicer: EncoderWithValues) -> None:
        self.address = address
        self.servicer = servicer

    def image(self, key: EmbeddingKey, grid: Grid = GRID) -> ImagePlace:
        return ImagePlace(key, 0, grid, self.address)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    servicer = EncoderWithValues()  # type: ignore[abstract]
    server = grpc.aio.server()
    encoder_pb2_grpc.add_EncoderServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Peer(f"127.0.0.1:{port}", servicer)
    await server.stop(None)


@asynccontextmanager
async def source_of(
    url: str, cache_bytes: int = 1 << 20, seconds: float = 60.0, allow_insecure: bool = False
) -> AsyncIterator[EmbeddingSource]:
    source = EmbeddingSource(
        store=EmbeddingStore.from_url(url, width=WIDTH, dtype=DType.F32),
        peers=PeerEncoders(
            width=WIDTH,
            dtype=DType.F32,
            seconds=seconds,
            tls=None,
            allow_insecure=allow_insecure,
        ),
        dtype=DType.F32,
        cache_bytes=cache_bytes,
    )
    try:
        yield source
    finally:
        await source.close()


@pytest.fixture
async def source(redis: RedisServer) -> AsyncIterator[EmbeddingSource]:
    async with source_of(redis.url) as source:
        yield source


def counted() -> dict[str, float]:
    return {
        result: REGISTRY.get_sample_value("pixtral_embedding_requests_total", {"result": result})
        or 0.0
        for result in ("local", "redis", "peer")
    }


def since(before: dict[str, float]) -> dict[str, float]:
    return {result: n - before[result] for result, n in counted().items() if n != before[result]}


async def test_from_redis_and_then_from_memory(source: EmbeddingSource, redis: RedisServer) -> None:
    key, tensor, before = key_of("a"), values(GRID), counted()
    store(redis, key, tensor, GRID)

    first = await source.get(ImagePlace(key, 0, GRID))
    with redis.client() as client:
        client.flushall()
    second = await source.get(ImagePlace(key, 0, GRID))

    assert first.grid == GRID
    assert torch.equal(first.tensor, tensor)
    assert torch.equal(second.tensor, tensor)
    assert since(before) == {"redis": 1, "local": 1}


async def test_from_the_encoder_where_redis_has_none(source: EmbeddingSource, peer: Peer) -> None:
    key, tensor, before = key_of("a"), values(GRID), counted()
    peer.servicer.values[key] = wire(key, tensor, GRID)

    got = await source.get(peer.image(key))

    assert torch.equal(got.tensor, tensor)
    assert since(before) == {"peer": 1}


async def test_the_encoder_is_asked_in_the_callers_trace_and_by_its_id(
    source: EmbeddingSource, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = key_of("a")
    peer.servicer.values[key] = wire(key, values(GRID), GRID)
    with collector() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        tracer = start_tracing("pixtral-decoder")
        call = Call.begin("a.B/C", (("x-request-id", "mine"),), tracer)
        await source.get(peer.image(key))
        call.end(grpc.StatusCode.OK)
        await tracer.close()
        spans = {span.name: span for span in received.spans}
    assert call.facts == {"embeddings_peer": 1}
    assert peer.servicer.metadata["x-request-id"] == "mine"
    fetch = spans["fetch"]
    told = peer.servicer.metadata["traceparent"]
    assert told.startswith(f"00-{fetch.trace_id}-{fetch.span_id}-")
    assert {fetch.parent_id, spans["embedding"].parent_id} == {spans["a.B/C"].span_id}
    assert spans["embedding"].attributes == {"pixtral.source": "peer"}


async def test_from_the_encoder_where_redis_is_gone(peer: Peer) -> None:
    with RedisServer() as server:
        url = server.url
    key, tensor = key_of("a"), values(GRID)
    peer.servicer.values[key] = wire(key, tensor, GRID)

    async with source_of(url) as source:
        got = await source.get(peer.image(key))

    assert torch.equal(got.tensor, tensor)


async def test_from_the_encoder_where_the_value_in_redis_is_damaged(
    source: EmbeddingSource, redis: RedisServer, peer: Peer
) -> None:
    key, tensor = key_of("a"), values(GRID)
    with redis.client() as client:
        client.set(key.redis_key, wire(key, tensor, GRID)[:-1])
        peer.servicer.values[key] = wire(key, tensor, GRID)

        got = await source.get(peer.image(key))

        assert torch.equal(got.tensor, tensor)
        assert not client.exists(key.redis_key)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
async def test_values_that_are_not_finite_are_as_good_as_none(
    source: EmbeddingSource, redis: RedisServer, value: float
) -> None:
    tensor = values(GRID)
    tensor[7, 9] = value
    store(redis, key_of("a"), tensor, GRID)
    with pytest.raises(EmbeddingMissing):
        await source.get(ImagePlace(key_of("a"), 0, GRID))


async def test_nobody_has_it(source: EmbeddingSource, peer: Peer) -> None:
    before = counted()
    with pytest.raises(EmbeddingMissing):
        await source.get(peer.image(key_of("a")))
    with pytest.raises(EmbeddingMissing):
        await source.get(ImagePlace(key_of("a"), 0, GRID))
    assert since(before) == {}


async def test_the_encoder_is_gone(source: EmbeddingSource) -> None:
    with pytest.raises(EmbeddingMissing):
        await source.get(ImagePlace(key_of("a"), 0, GRID, "127.0.0.1:1"))


async def test_an_encoder_off_this_machine_is_asked_over_tls_alone(
    redis: RedisServer, peer: Peer
) -> None:
    key, tensor = key_of("a"), values(GRID)
    peer.servicer.values[key] = wire(key, tensor, GRID)
    # An address of this machine by a name that does not say so.
    image = ImagePlace(key, 0, GRID, peer.address.replace("127.0.0.1", "0.0.0.0"))  # noqa: S104
    async with source_of(redis.url) as source:
        with pytest.raises(EmbeddingMissing):
            await source.get(image)
    assert peer.servicer.calls == 0
    async with source_of(redis.url, allow_insecure=True) as source:
        assert torch.equal((await source.get(image)).tensor, tensor)


async def test_an_encoder_that_hangs_is_given_up(redis: RedisServer, peer: Peer) -> None:
    peer.servicer.gate.clear()
    async with source_of(redis.url, seconds=0.1) as source:
        with pytest.raises(EmbeddingMissing):
            await source.get(peer.image(key_of("a")))


async def test_what_an_encoder_sends_is_checked(source: EmbeddingSource, peer: Peer) -> None:
    key, tensor = key_of("a"), values(GRID)
    good = wire(key, tensor, GRID)
    anothers = wire(key_of("b"), tensor, GRID)
    flipped = good[:200] + bytes([good[200] ^ 1]) + good[201:]
    for bad in (good[:-4], anothers, flipped, b""):
        peer.servicer.values[key] = bad
        with pytest.raises(EmbeddingMissing):
            await source.get(peer.image(key))


async def test_an_encoder_that_sends_without_end_is_stopped(
    source: EmbeddingSource, peer: Peer
) -> None:
    peer.servicer.values[key_of("a")] = bytes(10_000_000)
    with pytest.raises(EmbeddingMissing):
        await source.get(peer.image(key_of("a")))


async def test_those_who_ask_at_once_share_one_look(source: EmbeddingSource, peer: Peer) -> None:
    key, tensor, before = key_of("a"), values(GRID), counted()
    peer.servicer.values[key] = wire(key, tensor, GRID)
    peer.servicer.gate.clear()
    askers = [asyncio.create_task(source.get(peer.image(key))) for _ in range(8)]
    await eventually(lambda: peer.servicer.calls)
    peer.servicer.gate.set()

    got = await asyncio.gather(*askers)

    assert all(torch.equal(each.tensor, tensor) for each in got)
    assert peer.servicer.calls == 1
    assert since(before) == {"peer": 8}


async def test_one_who_is_cancelled_leaves_the_others(source: EmbeddingSource, peer: Peer) -> None:
    key = key_of("a")
    peer.servicer.values[key] = wire(key, values(GRID), GRID)
    peer.servicer.gate.clear()
    first, second = (asyncio.create_task(source.get(peer.image(key))) for _ in range(2))
    await eventually(lambda: peer.servicer.calls)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    peer.servicer.gate.set()

    assert (await second).grid == GRID
    assert peer.servicer.calls == 1


async def test_when_all_are_cancelled_the_call_ends(source: EmbeddingSource, peer: Peer) -> None:
    peer.servicer.gate.clear()
    asker = asyncio.create_task(source.get(peer.image(key_of("a"))))
    await eventually(lambda: peer.servicer.calls)
    asker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asker
    await eventually(lambda: peer.servicer.gone == 1)


async def test_memory_is_bounded_by_bytes(redis: RedisServer) -> None:
    size = values(GRID).nbytes
    for name in "abc":
        store(redis, key_of(name), values(GRID), GRID)
    async with source_of(redis.url, cache_bytes=2 * size) as source:
        for name in "abc":
            await source.get(ImagePlace(key_of(name), 0, GRID))
        before = counted()
        for name in "cba":
            await source.get(ImagePlace(key_of(name), 0, GRID))
    assert since(before) == {"local": 2, "redis": 1}


async def test_what_had_to_go_gives_its_memory_back(redis: RedisServer) -> None:
    grid = Grid(64, 72)
    tensors = {name: values(grid) for name in "abc"}
    for name, tensor in tensors.items():
        store(redis, key_of(name), tensor, grid)
    async with source_of(redis.url, cache_bytes=tensors["a"].nbytes) as source:
        first = await source.get(ImagePlace(key_of("a"), 0, grid))
        for name in "bc":
            await source.get(ImagePlace(key_of(name), 0, grid))
        # The first, which is still held, the last, and those for the next.
        await until(2 * (2 + SPARES))
        assert torch.equal(first.tensor, tensors["a"])
        del first
        await until(2 * (1 + SPARES))
    del source
    await until(0)
