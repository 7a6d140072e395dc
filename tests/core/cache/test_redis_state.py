"""Lines of the log about Redis: one a change, whatever the number of requests."""

import asyncio
from collections.abc import Iterator

import pytest

from pixtral_core.cache.guarded_redis import GuardedRedis
from pixtral_core.cache.redis_state import RedisState
from tests.support.redis_server import RedisServer


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    caplog.set_level("WARNING", logger="pixtral_core.cache.redis_state")
    found: list[str] = []
    yield found
    records = caplog.get_records("call")
    assert [record.message.split(" (")[0] for record in records] == found
    assert {record.levelname for record in records} == {"WARNING"}


async def until_it_answers(redis: GuardedRedis) -> None:
    async with asyncio.timeout(60):
        # It is left alone for a while after each fault.
        while not await redis.check():
            await asyncio.sleep(0.05)


async def test_a_redis_that_goes_and_comes_back_is_told_once_each(lines: list[str]) -> None:
    with RedisServer() as server:
        redis = GuardedRedis.from_url(server.url)
        beside = GuardedRedis.from_url(server.url, state=redis.state)
        await redis.check()
        for _ in range(2):
            server.stop()
            for _ in range(20):
                assert not await redis.check()
                assert not await beside.check()
            lines.append("Redis does not answer")
            server.start()
            await until_it_answers(redis)
            await until_it_answers(beside)
            lines.append("Redis answers again")
        await redis.close()
        await beside.close()


async def test_a_redis_that_is_not_there_at_the_start_is_told_of(lines: list[str]) -> None:
    redis = GuardedRedis.from_url("redis://127.0.0.1:1/0")
    for _ in range(3):
        assert not await redis.check()
    lines.append("Redis does not answer")
    await redis.close()


def test_each_kind_that_is_refused_is_told_of_once(lines: list[str]) -> None:
    state = RedisState()
    for _ in range(3):
        # Full: it still reads.
        state.refused("put", "OutOfMemoryError")
        state.answered("get")
    lines.append("Redis refuses put: OutOfMemoryError")
    state.does_not_answer("timeout")
    lines.append("Redis does not answer")
    # One that refuses answers.
    state.refused("put", "OutOfMemoryError")
    lines.append("Redis answers again")
    state.answered("put")
    state.answered("put")
    lines.append("Redis accepts put again")
