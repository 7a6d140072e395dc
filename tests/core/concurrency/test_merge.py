"""Several generators as one."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from pixtral_core.concurrency.merge import merged
from pixtral_core.errors import DeadlineExceeded, Overloaded


class Sources:
    """Each yields its number so often; `running` have begun and not ended, at most `most`."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0

    async def source(self, number: int, times: int = 3) -> AsyncGenerator[int]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(times):
                await asyncio.sleep(0)
                yield number
        finally:
            self.running -= 1

    async def fails(self, error: Exception) -> AsyncGenerator[int]:
        yield 0
        raise error

    async def cancels_itself(self, error: Exception) -> AsyncGenerator[int]:
        task = asyncio.current_task()
        assert task is not None
        task.cancel(error)
        await asyncio.sleep(0)
        yield 0


@pytest.mark.parametrize("count", [1, 2, 7])
async def test_each_item_comes_with_its_source_and_so_many_run_at_once(count: int) -> None:
    sources = Sources()
    made = [sources.source(number) for number in range(count)]
    found = [pair async for pair in merged(made, at_once=2)]
    assert sorted(found) == sorted((number, number) for number in range(count) for _ in range(3))
    assert (sources.most, sources.running) == (min(count, 2), 0)


@pytest.mark.parametrize("count", [1, 3])
async def test_closing_it_closes_every_source(count: int) -> None:
    sources = Sources()
    stream = merged([sources.source(number) for number in range(count)], at_once=2)
    async with aclosing(stream):
        await anext(stream)
        assert sources.running
    assert not sources.running


@pytest.mark.parametrize("kind", ["fails", "cancels_itself"])
async def test_the_first_that_fails_ends_the_others(kind: str) -> None:
    sources, error = Sources(), DeadlineExceeded() if kind == "cancels_itself" else Overloaded("x")
    made = [sources.source(1, times=1000), getattr(sources, kind)(error)]
    with pytest.raises(type(error)) as failed:
        async for _ in merged(made, at_once=2):
            pass
    assert failed.value is error
    assert not sources.running


async def test_a_source_waits_while_its_item_is_not_taken() -> None:
    made = []

    async def source() -> AsyncGenerator[int]:
        for number in range(3):
            made.append(number)
            yield number

    stream = merged([source(), source()], at_once=2)
    async with aclosing(stream):
        await anext(stream)
        for _ in range(10):
            await asyncio.sleep(0)
        assert sorted(made) == [0, 0]
