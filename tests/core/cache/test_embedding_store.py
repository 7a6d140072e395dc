import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from prometheus_client import REGISTRY

from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.cache.embedding_store import EmbeddingStore
from pixtral_core.cache.receiving import Arrival
from pixtral_core.cache.wire_format import DType, Embedding, encode
from tests.support.redis_server import RedisServer

WIDTH = 64


def key_of(name: str) -> EmbeddingKey:
    return EmbeddingKey(hashlib.sha256(name.encode()).digest(), "f00d", "public")


def value_of(name: str, rows: int = 2) -> bytes:
    key = key_of(name)
    data = key.digest * (rows * WIDTH * 2 // 32)
    return encode(key, Embedding(rows, 1, WIDTH, DType.BF16, data))


class Itself(Arrival[Embedding]):
    def made(self, embedding: Embedding) -> Embedding:
        return embedding


async def get(store: EmbeddingStore, key: EmbeddingKey) -> Embedding | None:
    return await store.get(key, Itself())


def failures(operation: str, reason: str) -> float:
    labels = {"operation": operation, "reason": reason}
    return REGISTRY.get_sample_value("pixtral_embedding_store_failures_total", labels) or 0.0


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[EmbeddingStore]:
    store = EmbeddingStore.from_url(server.url, width=WIDTH, dtype=DType.BF16)
    yield store
    await store.close()


async def test_what_is_put_is_there_for_another_client(
    server: RedisServer, store: EmbeddingStore
) -> None:
    assert await store.put(key_of("a"), value_of("a"))
    other = EmbeddingStore.from_url(server.url, width=WIDTH, dtype=DType.BF16)
    found = await get(other, key_of("a"))
    await other.close()
    assert found is not None
    assert bytes(found.data) == key_of("a").digest * 8
    assert await store.exist([key_of("a"), key_of("b"), key_of("a")]) == [True, False, True]
    assert await store.exist([key_of("a")]) == [True]
    assert await store.exist([key_of("b")]) == [False]
    assert await store.exist([]) == []
    assert await get(store, key_of("b")) is None


async def test_a_large_value_comes_back_whole(store: EmbeddingStore) -> None:
    value = value_of("large", rows=4096)
    assert await store.put(key_of("large"), value)
    found = await get(store, key_of("large"))
    assert found is not None
    assert encode(key_of("large"), found) == value


@pytest.mark.parametrize("rows", [2, 8192])
async def test_a_damaged_value_is_a_miss_counted_and_deleted(
    server: RedisServer, store: EmbeddingStore, rows: int
) -> None:
    damaged = bytearray(value_of("a", rows))
    damaged[-1] ^= 1
    with server.client() as client:
        client.set(key_of("a").redis_key, bytes(damaged))
    before = failures("get", "damaged")
    assert await get(store, key_of("a")) is None
    assert failures("get", "damaged") == before + 1
    assert await store.exist([key_of("a")]) == [False]


class ReplacedMeanwhile(Itself):
    """Another encoder's value comes while the first is being read."""

    def __init__(self, server: RedisServer, key: EmbeddingKey, value: bytes) -> None:
        self._server = server
        self._replacing = key.redis_key, value
        self.count = 0

    def memory(self, size: int) -> memoryview:
        self.count += 1
        if self.count == 1:
            with self._server.client() as client:
                client.set(*self._replacing)
        return super().memory(size)


async def test_a_value_that_is_replaced_as_it_is_read_is_read_again(
    server: RedisServer, store: EmbeddingStore
) -> None:
    key, rows = key_of("a"), 65_536
    theirs = Embedding(rows, 1, WIDTH, DType.BF16, bytes(rows * WIDTH * 2))
    assert await store.put(key, value_of("a", rows))
    before = failures("get", "damaged")
    arrival = ReplacedMeanwhile(server, key, encode(key, theirs))
    found = await store.get(key, arrival)
    assert found is not None
    assert found.data == theirs.data
    assert arrival.count == 2
    assert failures("get", "damaged") == before


async def test_a_value_under_another_key_is_a_miss(
    server: RedisServer, store: EmbeddingStore
) -> None:
    with server.client() as client:
        client.set(key_of("b").redis_key, value_of("a"))
    assert await get(store, key_of("b")) is None


async def test_without_redis_all_are_misses_and_it_recovers(
    server: RedisServer, store: EmbeddingStore
) -> None:
    assert await store.put(key_of("a"), value_of("a"))
    server.stop()
    assert await get(store, key_of("a")) is None
    assert await store.exist([key_of("a")]) == [False]
    assert not await store.put(key_of("a"), value_of("a"))
    server.start()
    async with asyncio.timeout(60):
        while not await store.put(key_of("a"), value_of("a")):
            await asyncio.sleep(0.05)
    assert await get(store, key_of("a")) is not None


async def test_connections_that_ended_while_idle_cost_nothing(
    server: RedisServer, store: EmbeddingStore
) -> None:
    assert await store.put(key_of("a"), value_of("a"))
    # Several connections, all idle after it.
    assert all(await asyncio.gather(*(get(store, key_of("a")) for _ in range(8))))
    with server.client() as client:
        assert client.client_kill_filter(_type="normal", skipme=True) > 1
    before = failures("get", "connection")
    assert all(await asyncio.gather(*(get(store, key_of("a")) for _ in range(8))))
    assert failures("get", "connection") == before


async def test_a_redis_that_hangs_costs_one_timeout_and_then_none(
    server: RedisServer, store: EmbeddingStore
) -> None:
    assert await store.put(key_of("a"), value_of("a"))
    with server.client() as client:
        pid = int(client.info("server")["process_id"])
    os.kill(pid, signal.SIGSTOP)
    try:
        timeouts, paused = failures("exist", "timeout"), failures("exist", "paused")
        for _ in range(5):
            assert await store.exist([key_of("a")]) == [False]
        assert failures("exist", "timeout") == timeouts + 1
        assert failures("exist", "paused") == paused + 4
    finally:
        os.kill(pid, signal.SIGCONT)
    async with asyncio.timeout(60):
        while await get(store, key_of("a")) is None:
            await asyncio.sleep(0.05)


async def test_a_full_redis_stores_nothing_and_still_reads(server: RedisServer) -> None:
    with RedisServer(maxmemory="1mb", maxmemory_policy="noeviction") as full:
        store = EmbeddingStore.from_url(full.url, width=WIDTH, dtype=DType.BF16)
        with full.client() as client:
            client.set(key_of("a").redis_key, value_of("a"))
        refused = failures("put", "refused")
        for number in range(64):
            await store.put(key_of(str(number)), value_of(str(number), rows=8192))
        assert failures("put", "refused") > refused
        assert await get(store, key_of("a")) is not None
        await store.close()


async def test_a_cancelled_call_never_hands_its_reply_to_another(
    server: RedisServer,
) -> None:
    """redis-py once left a cancelled caller's reply in the connection for the next one to read."""
    store = EmbeddingStore.from_url(server.url, width=WIDTH, dtype=DType.BF16, max_connections=2)
    names = [str(n) for n in range(8)]
    for name in names:
        assert await store.put(key_of(name), value_of(name, rows=4096))
    answered = 0
    for round_ in range(60):
        tasks = [asyncio.create_task(get(store, key_of(name))) for name in names]
        for _ in range(round_ % 12):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for name, result in zip(names, results, strict=True):
            if isinstance(result, Embedding):
                answered += 1
                assert bytes(result.data[:32]) == key_of(name).digest
            else:
                assert result is None or isinstance(result, asyncio.CancelledError)
    assert answered > 60
    # No connection was lost to a cancelled caller: both still serve.
    assert all([await get(store, key_of(name)) for name in names])
    await store.close()


def test_a_malformed_url_is_refused() -> None:
    with pytest.raises(ValueError, match="scheme"):
        EmbeddingStore.from_url("http://example.test", width=WIDTH, dtype=DType.BF16)
