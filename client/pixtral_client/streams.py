"""Answers while they are generated: `Stream`, and `AsyncStream` for asyncio."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self

import grpc

from pixtral.v1 import chat_pb2
from pixtral_client.errors import from_rpc_error
from pixtral_client.requests import Answer
from pixtral_client.results import Completion, Delta
from pixtral_client.retries import Tries


class Stream(Iterator[Delta]):
    """An answer while it is generated: iterate for deltas, then read `completion`.

    `close()` and the end of a `with` block cancel the request, and the server stops working on it.
    The same happens when the program drops the stream, for example with `break` in a loop over
    `client.stream(...)`.
    """

    def __init__(
        self,
        call: "grpc._CallIterator[chat_pb2.StreamCompleteResponse]",
        tries: Tries,
        begin: "Callable[[], grpc._CallIterator[chat_pb2.StreamCompleteResponse]]",
    ) -> None:
        self._call = call
        self._tries = tries
        self._begin = begin
        self._answer = Answer()
        self._closed = threading.Event()
        self._is_seen = False

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._answer.so_far.text

    @property
    def completion(self) -> Completion | None:
        """The whole answer; None until the stream has ended."""
        return self._answer.completion

    def __next__(self) -> Delta:
        while not self._closed.is_set():
            try:
                for event in self._call:
                    if not self._is_seen:
                        self._is_seen = True
                        self._tries.answered()
                    if delta := self._answer.add(event):
                        return delta
                break
            except grpc.RpcError as error:
                failed = from_rpc_error(error)
                wait = None if self._is_seen else self._tries.wait_after(failed)
                if self._closed.is_set() or wait is None:
                    raise failed from None
                if self._closed.wait(wait):
                    break
                self._call = self._begin()
                if self._closed.is_set():
                    # Another thread may have closed it meanwhile.
                    self._call.cancel()
        raise StopIteration

    def close(self) -> None:
        """Cancels the answer, from any thread."""
        self._closed.set()
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class AsyncStream(AsyncIterator[Delta]):
    """`Stream` for asyncio. Cancelling the task that reads it also cancels the request."""

    def __init__(
        self,
        call: grpc.aio.UnaryStreamCall[Any, chat_pb2.StreamCompleteResponse],
        tries: Tries,
        begin: Callable[[], grpc.aio.UnaryStreamCall[Any, chat_pb2.StreamCompleteResponse]],
    ) -> None:
        self._call = call
        self._tries = tries
        self._begin = begin
        self._events = aiter(self._call)
        self._loop = asyncio.get_running_loop()
        self._answer = Answer()
        self._closed = self._is_seen = False

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._answer.so_far.text

    @property
    def completion(self) -> Completion | None:
        """The whole answer; None until the stream has ended."""
        return self._answer.completion

    async def __anext__(self) -> Delta:
        while not self._closed:
            try:
                async for event in self._events:
                    if not self._is_seen:
                        self._is_seen = True
                        self._tries.answered()
                    if delta := self._answer.add(event):
                        return delta
                break
            except grpc.RpcError as error:
                failed = from_rpc_error(error)
                wait = None if self._is_seen else self._tries.wait_after(failed)
                if self._closed or wait is None:
                    raise failed from None
                await asyncio.sleep(wait)
                if self._closed:
                    break
                self._call = self._begin()
                self._events = aiter(self._call)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancels the answer."""
        self._closed = True
        self._call.cancel()

    def __del__(self) -> None:
        # The event loop keeps an asyncio call alive. The collector may run in any thread, and after
        # the loop has ended.
        if not self._call.done():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._call.cancel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()
