"""Reads ahead for a slow reader, and joins the deltas that wait for it."""

import asyncio
import time
from collections.abc import AsyncGenerator

from pixtral_core.concurrency.unread_errors import read_error
from pixtral_gateway.request import Delta

# A reader that takes longer over one delta is slow. Deltas come 10 to 100 times a second.
SLOW_SECONDS = 0.05

# If more than this has been joined to deltas that wait, the buffer stops reading, and so the
# decoder must wait, too.
MAX_WAITING_BYTES = 64 << 10

_TOKEN_BYTES = 8
_LOGPROB_BYTES = 64


class StreamBuffer:
    """An iterator over the deltas of `source`, for one reader.

    Until the reader is slow for the first time, the buffer reads `source` only when the reader
    asks, which needs no task. After that, a task reads `source` as its deltas come. Waiting deltas
    of one choice become one delta, and if they exceed MAX_WAITING_BYTES, the task waits for the
    reader. An error of `source` is raised after all deltas before it. `aclose` closes `source`.
    """

    def __init__(self, source: AsyncGenerator[Delta]) -> None:
        self._source = source
        self._given: float | None = None
        self._filling: asyncio.Task[None] | None = None
        # The waiting deltas of each choice. The choices are in the order of their first deltas.
        self._waiting: dict[int, _Joined] = {}
        self._joined_bytes = 0
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()

    def __aiter__(self) -> "StreamBuffer":
        return self

    async def __anext__(self) -> Delta:
        if self._filling is None:
            if self._given is None or time.monotonic() - self._given <= SLOW_SECONDS:
                delta = await anext(self._source)
                self._given = time.monotonic()
                return delta
            self._filling = asyncio.create_task(self._fill())
            self._filling.add_done_callback(read_error)
        while not self._waiting and not self._filling.done():
            self._arrived.clear()
            await self._arrived.wait()
        if self._waiting:
            return self._next()
        await self._filling
        raise StopAsyncIteration

    async def aclose(self) -> None:
        filling = self._filling
        if filling is not None:
            while not filling.done():
                filling.cancel()
                await asyncio.wait((filling,))
        await self._source.aclose()

    async def _fill(self) -> None:
        try:
            async for delta in self._source:
                self._add(delta)
                self._arrived.set()
                while self._joined_bytes > MAX_WAITING_BYTES:
                    self._taken.clear()
                    await self._taken.wait()
        finally:
            self._arrived.set()

    def _add(self, delta: Delta) -> None:
        before = self._waiting.get(delta.index)
        if before is None:
            self._waiting[delta.index] = _Joined(delta)
        else:
            before.deltas.append(delta)
            self._joined_bytes += _size(delta)

    def _next(self) -> Delta:
        first = self._waiting.pop(next(iter(self._waiting)))
        if not self._waiting:
            self._joined_bytes = 0
            self._taken.set()
        return first.whole()


class _Joined:
    """One delta, and those that are joined to it."""

    __slots__ = ("deltas",)

    def __init__(self, delta: Delta) -> None:
        self.deltas = [delta]

    def whole(self) -> Delta:
        first, last = self.deltas[0], self.deltas[-1]
        if first is last:
            return first
        return Delta(
            index=first.index,
            text="".join(each.text for each in self.deltas),
            token_ids=[token_id for each in self.deltas for token_id in each.token_ids],
            finish_reason=last.finish_reason,
            logprobs=tuple(logprob for each in self.deltas for logprob in each.logprobs),
            prompt_logprobs=tuple(
                logprob for each in self.deltas for logprob in each.prompt_logprobs
            ),
            cached_tokens=first.cached_tokens,
            queue=first.queue,
            stop_reason=last.stop_reason,
        )


def _size(delta: Delta) -> int:
    logprobs = sum(1 + len(each.top) for each in (*delta.logprobs, *delta.prompt_logprobs))
    return len(delta.text) + _TOKEN_BYTES * len(delta.token_ids) + _LOGPROB_BYTES * logprobs
