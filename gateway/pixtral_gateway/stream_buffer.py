"""What waits for a slow reader, as one delta for each answer instead of one for each token."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Generic, TypeVar

from pixtral.v1 import chat_pb2

T = TypeVar("T")

# A reader that takes longer over one event is slow. Events come 10 to 100 a second.
SLOW_SECONDS = 0.05

# Of deltas that came after one that still waits. Then the decoder is held back too.
MAX_WAITING_BYTES = 64 << 10


async def merged(
    events: AsyncGenerator[chat_pb2.Choice | T],
) -> AsyncGenerator[chat_pb2.Choice | T]:
    """Takes `events` one by one while the reader keeps up, which needs no task of its own; from the
    first that it is slow over on, takes them as they come, wanted yet or not, and yields what has
    come.

    Deltas of one answer that wait become one; beyond MAX_WAITING_BYTES of them, no more are taken.
    What is no delta keeps its place. An error of `events` is raised once all before it has been
    yielded. Closing the generator closes `events`.
    """
    async with aclosing(events):
        async for event in events:
            given = time.monotonic()
            yield event
            if time.monotonic() - given > SLOW_SECONDS:
                break
        else:
            return
        async with aclosing(_as_they_come(events)) as rest:
            async for event in rest:
                yield event


async def _as_they_come(
    events: AsyncGenerator[chat_pb2.Choice | T],
) -> AsyncGenerator[chat_pb2.Choice | T]:
    waiting: _Waiting[T] = _Waiting()
    filling = asyncio.create_task(waiting.fill(events))
    try:
        while waiting or not filling.done():
            if waiting:
                yield waiting.next()
            else:
                await waiting.come()
        await filling
    finally:
        while not filling.done():
            filling.cancel()
            await asyncio.wait((filling,))
        if not filling.cancelled():
            # Read, so that asyncio does not report it lost where nobody waits for it any more.
            filling.exception()


class _Waiting(Generic[T]):
    """In the order in which they came, an answer by its first delta."""

    def __init__(self) -> None:
        self._events: dict[int, _Delta | T] = {}
        self._others = 0
        self._merged_bytes = 0
        self._come = asyncio.Event()
        self._taken = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._events)

    async def fill(self, events: AsyncGenerator[chat_pb2.Choice | T]) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    self._add(event)
                    self._come.set()
                    while self._merged_bytes > MAX_WAITING_BYTES:
                        self._taken.clear()
                        await self._taken.wait()
        finally:
            self._come.set()

    def next(self) -> chat_pb2.Choice | T:
        first = self._events.pop(next(iter(self._events)))
        if not self._events:
            self._merged_bytes = 0
            self._taken.set()
        return first.whole() if isinstance(first, _Delta) else first

    async def come(self) -> None:
        """Returns when there is something, or nothing will come."""
        self._come.clear()
        await self._come.wait()

    def _add(self, event: chat_pb2.Choice | T) -> None:
        if not isinstance(event, chat_pb2.Choice):
            self._others += 1
            self._events[-self._others] = event
            return
        before = self._events.get(event.index)
        if isinstance(before, _Delta):
            before.add(event)
            self._merged_bytes += event.ByteSize()
        else:
            self._events[event.index] = _Delta(event)


class _Delta:
    """One delta of those that are added to the first."""

    __slots__ = ("_choice", "_texts")

    def __init__(self, choice: chat_pb2.Choice) -> None:
        self._choice = choice
        # Joined once: to add to a text is to copy it.
        self._texts: list[str] | None = None

    def add(self, choice: chat_pb2.Choice) -> None:
        self._texts = self._texts or [self._choice.text]
        self._texts.append(choice.text)
        self._choice.MergeFrom(choice)

    def whole(self) -> chat_pb2.Choice:
        if self._texts is not None:
            self._choice.text = "".join(self._texts)
        return self._choice
