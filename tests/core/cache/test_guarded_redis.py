import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop
from prometheus_client import REGISTRY

from pixtral_core.cache.guarded_redis import GuardedRedis
from tests.support.redis_server import RedisServer
from tests.support.stack.proxy import Link, Proxy, Weather


@pytest.fixture
async def redis() -> AsyncIterator[GuardedRedis]:
    with RedisServer() as server:
        guarded = GuardedRedis.from_url(server.url)
        yield guarded
        await guarded.close()


def failures(reason: str) -> float:
    labels = {"operation": "test", "reason": reason}
    return REGISTRY.get_sample_value("pixtral_embedding_store_failures_total", labels) or 0.0


async def test_result_of_a_call_is_passed_on(redis: GuardedRedis) -> None:
    assert await redis.attempt("test", 20, lambda: redis.client.set("a", b"1")) is True
    assert await redis.attempt("test", 20, lambda: redis.client.get("a")) == b"1"


async def test_refusal_is_nothing_and_does_not_pause(redis: GuardedRedis) -> None:
    before = failures("refused")
    await redis.attempt("test", 20, lambda: redis.client.set("a", b"text"))
    assert await redis.attempt("test", 20, lambda: redis.client.incr("a")) is None
    assert failures("refused") == before + 1
    assert await redis.attempt("test", 20, lambda: redis.client.get("a")) == b"text"


async def test_slow_call_is_nothing_and_those_that_follow_are_not_tried(
    redis: GuardedRedis,
) -> None:
    async def hangs() -> bool:
        return await asyncio.Event().wait()

    timeouts, paused = failures("timeout"), failures("paused")
    assert await redis.attempt("test", 0.01, hangs) is None
    assert await redis.attempt("test", 20, hangs) is None
    assert (failures("timeout"), failures("paused")) == (timeouts + 1, paused + 1)
    async with asyncio.timeout(60):
        while await redis.attempt("test", 20, lambda: redis.client.set("a", b"1")) is None:
            await asyncio.sleep(0.05)


async def test_mistake_in_a_call_is_raised(redis: GuardedRedis) -> None:
    async def wrong() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await redis.attempt("test", 20, wrong)


def test_connections_that_were_reset_cost_no_more_than_the_time_of_it() -> None:
    # On the loop that the tiers run on: what a reset is told by differs from asyncio's own.
    uvloop.run(resets())


async def until_noticed(redis: GuardedRedis) -> None:
    idle: list[Any] = redis.client.connection_pool._available_connections
    async with asyncio.timeout(60):
        while not all(each._writer.transport.is_closing() for each in idle if each.is_connected):
            await asyncio.sleep(0.01)


async def resets() -> None:
    link = Link("redis")
    with RedisServer() as server:
        async with Proxy(link) as proxy:
            proxy.target = f"127.0.0.1:{server.port}"
            redis = GuardedRedis.from_url(server.url_at(proxy.address), max_connections=4)

            async def ask_all() -> set[Any]:
                calls = [redis.attempt("test", 20, lambda: redis.client.get("a")) for _ in range(4)]
                return set(await asyncio.gather(*calls))

            await redis.attempt("test", 20, lambda: redis.client.set("a", b"1"))
            assert await ask_all() == {b"1"}
            before = failures("connection")
            for _ in range(3):
                link.change(Weather(is_cut=True))
                await until_noticed(redis)
                link.change(Weather())
                assert await ask_all() == {b"1"}
            assert failures("connection") == before

            link.change(Weather(is_cut=True))
            assert await ask_all() == {None}
            assert failures("connection") > before
            await redis.close()
