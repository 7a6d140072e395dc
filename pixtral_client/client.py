"""Clients of the gateway: `Client`, and `AsyncClient` for asyncio.

Nothing is retried here: the gateway retries within the deadline whatever can be retried unseen,
and what it passes on says, in `retry_after`, when another try may succeed. A server that is not
there is an `Unavailable` at once.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from pixtral.v1 import chat_pb2, chat_pb2_grpc
from pixtral_client.errors import raise_from
from pixtral_client.messages import Messages
from pixtral_client.requests import (
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT,
    Answer,
    Options,
    Tls,
    authorization,
    channel_options,
    complete_request,
    completion,
    count_request,
    stream_request,
)
from pixtral_client.results import Completion, Delta, Model, TokenCount, models_from_proto


class Stream(Iterator[Delta]):
    """An answer as it is generated: iterate for deltas, then read `completion`.

    `close()`, the end of a `with` block and letting go of the stream, as `break` does in a loop
    over `client.stream(...)`, cancel the call, and the server stops working on it.
    """

    def __init__(
        self,
        call: "grpc._CallIterator[chat_pb2.StreamCompleteResponse]",
    ) -> None:
        self._call = call
        self._answer = Answer()
        self._closed = False

    @property
    def text(self) -> str:
        """What has come so far."""
        return self._answer.so_far.text

    @property
    def completion(self) -> Completion | None:
        """The whole answer; None until the stream has ended."""
        return self._answer.completion

    def __next__(self) -> Delta:
        if self._closed:
            raise StopIteration
        try:
            for event in self._call:
                if delta := self._answer.add(event):
                    return delta
        except grpc.RpcError as error:
            raise_from(error)
        raise StopIteration

    def close(self) -> None:
        self._closed = True
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Client:
    """A connection to a gateway. Use it from any thread; close it, or use it as a context manager.

    Args:
        target: `host:port` of the gateway.
        tls: the connection's certificates; `Tls()` trusts the system's authorities. None is
            plaintext.
        api_key: whose requests these are; else PIXTRAL_API_KEY, if that is set. Over TLS only,
            but to this machine.
        timeout: seconds that a call may take, where the call does not say.

    Every call raises `PixtralError` or a subclass of it; messages that cannot be sent raise
    `TypeError` or `ValueError` before anything is.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: Tls | None = None,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._timeout = timeout
        self._metadata = authorization(api_key, target, tls)
        options = channel_options(target)
        if tls is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, tls.credentials(), options)
        self._stub = chat_pb2_grpc.ChatServiceStub(self._channel)

    def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> Completion:
        """Answers a conversation; see `pixtral_client.messages` for what it may hold, and
        `pixtral_client.tools` for what may be called."""
        request = complete_request(messages, model, options)
        try:
            return completion(
                self._stub.Complete(
                    request, timeout=timeout or self._timeout, metadata=self._metadata
                )
            )
        except grpc.RpcError as error:
            raise_from(error)

    def stream(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> Stream:
        """Answers a conversation as the answer is generated."""
        request = stream_request(messages, model, options)
        call = self._stub.StreamComplete(
            request, timeout=timeout or self._timeout, metadata=self._metadata
        )
        return Stream(call)

    def count_tokens(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
    ) -> TokenCount:
        """Counts a conversation's prompt tokens without running the model."""
        request = count_request(messages, model, tools, tool_choice)
        try:
            response = self._stub.CountTokens(
                request, timeout=timeout or self._timeout, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise_from(error)
        return TokenCount(response.prompt_tokens, response.image_tokens)

    def models(self, *, timeout: float | None = None) -> list[Model]:
        """Lists the models that the gateway serves."""
        try:
            request = chat_pb2.ListModelsRequest()
            response = self._stub.ListModels(
                request, timeout=timeout or self._timeout, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise_from(error)
        return models_from_proto(response)

    def close(self) -> None:
        """Cancels what is running and closes the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncStream(AsyncIterator[Delta]):
    """`Stream` for asyncio. Cancelling the task that reads it cancels the call, too."""

    def __init__(
        self,
        call: grpc.aio.UnaryStreamCall[Any, chat_pb2.StreamCompleteResponse],
    ) -> None:
        self._call = call
        self._events = aiter(call)
        self._loop = asyncio.get_running_loop()
        self._answer = Answer()
        self._closed = False

    @property
    def text(self) -> str:
        """What has come so far."""
        return self._answer.so_far.text

    @property
    def completion(self) -> Completion | None:
        """The whole answer; None until the stream has ended."""
        return self._answer.completion

    async def __anext__(self) -> Delta:
        if self._closed:
            raise StopAsyncIteration
        try:
            async for event in self._events:
                if delta := self._answer.add(event):
                    return delta
        except grpc.RpcError as error:
            raise_from(error)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._closed = True
        self._call.cancel()

    def __del__(self) -> None:
        # Unlike the sync call, this one is kept by its loop. The collector may run in any thread,
        # and when the loop is gone.
        if not self._call.done():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._call.cancel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()


class AsyncClient:
    """`Client` for asyncio: the same calls, awaited. Make it where the event loop runs.

    Images are read, fetched and encoded in a thread, never on the loop.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: Tls | None = None,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._timeout = timeout
        self._metadata = authorization(api_key, target, tls)
        options = channel_options(target)
        if tls is None:
            self._channel = grpc.aio.insecure_channel(target, options)
        else:
            self._channel = grpc.aio.secure_channel(target, tls.credentials(), options)
        self._stub = chat_pb2_grpc.ChatServiceStub(self._channel)

    async def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> Completion:
        """Answers a conversation; see `pixtral_client.messages` for what it may hold."""
        request = await asyncio.to_thread(complete_request, messages, model, options)
        try:
            return completion(
                await self._stub.Complete(
                    request, timeout=timeout or self._timeout, metadata=self._metadata
                )
            )
        except grpc.RpcError as error:
            raise_from(error)

    async def stream(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> AsyncStream:
        """Answers a conversation as the answer is generated."""
        request = await asyncio.to_thread(stream_request, messages, model, options)
        call = self._stub.StreamComplete(
            request, timeout=timeout or self._timeout, metadata=self._metadata
        )
        return AsyncStream(call)

    async def count_tokens(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
    ) -> TokenCount:
        """Counts a conversation's prompt tokens without running the model."""
        request = await asyncio.to_thread(count_request, messages, model, tools, tool_choice)
        try:
            response = await self._stub.CountTokens(
                request, timeout=timeout or self._timeout, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise_from(error)
        return TokenCount(response.prompt_tokens, response.image_tokens)

    async def models(self, *, timeout: float | None = None) -> list[Model]:
        """Lists the models that the gateway serves."""
        try:
            request = chat_pb2.ListModelsRequest()
            response = await self._stub.ListModels(
                request, timeout=timeout or self._timeout, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise_from(error)
        return models_from_proto(response)

    async def close(self) -> None:
        """Cancels what is running and closes the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
