"""Merges several asynchronous generators into one, and runs a limited number of them at a time."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from typing import Generic, Protocol, TypeVar

from pixtral_core.concurrency.cancelling import reason_of
from pixtral_core.concurrency.gather import run_all
from pixtral_core.concurrency.unread_errors import read_error

T = TypeVar("T")
C = TypeVar("C", covariant=True)


class Merged(Protocol[C]):
    """Yields items, each with the index of its source, until it is closed."""

    def __aiter__(self) -> AsyncIterator[tuple[int, C]]: ...

    def __anext__(self) -> Awaitable[tuple[int, C]]: ...

    def aclose(self) -> Awaitable[None]: ...


def merged(sources: Sequence[AsyncGenerator[T]], *, at_once: int) -> Merged[T]:
    """Yields the items of each source, with the source's index, as they come.

    At most `at_once` sources run at a time. A source does not continue until its last item has been
    taken. The first source that fails ends the others, and its error is raised unchanged. Closing
    this generator closes every source.
    """
    if len(sources) == 1:
        return _Only(sources[0])
    return _several(sources, at_once)


class _Only(Generic[T]):
    """One source. A generator around it would cost time for each item."""

    def __init__(self, source: AsyncGenerator[T]) -> None:
        self._source = source

    def __aiter__(self) -> "_Only[T]":
        return self

    async def __anext__(self) -> tuple[int, T]:
        return 0, await anext(self._source)

    async def aclose(self) -> None:
        await self._source.aclose()


async def _several(
    sources: Sequence[AsyncGenerator[T]], at_once: int
) -> AsyncGenerator[tuple[int, T]]:
    room = asyncio.Semaphore(at_once)
    arrived: asyncio.Queue[tuple[int, T, asyncio.Event] | None] = asyncio.Queue()

    async def drain(index: int, source: AsyncGenerator[T]) -> None:
        try:
            async with room, aclosing(source):
                async for item in source:
                    taken = asyncio.Event()
                    arrived.put_nowait((index, item, taken))
                    await taken.wait()
        except asyncio.CancelledError as cancelled:
            reason = reason_of(cancelled)
            # A source that cancels itself with an error as the reason has failed with that error.
            raise cancelled if reason is None else reason from None

    async def drain_all() -> None:
        try:
            await run_all([drain(index, source) for index, source in enumerate(sources)])
        finally:
            arrived.put_nowait(None)

    draining = asyncio.create_task(drain_all())
    draining.add_done_callback(read_error)
    try:
        while (found := await arrived.get()) is not None:
            index, item, taken = found
            yield index, item
            taken.set()
        await draining
    finally:
        if not draining.done():
            draining.cancel()
            await asyncio.wait([draining])
