"""Clients of the gateway: `Client`, and `AsyncClient` for asyncio.

A client retries in one case only: when the gateway no longer has an image that the request named
by its SHA-256 (`pixtral_client.sent_images`). The gateway itself retries, within the deadline, what
can be retried unseen; its errors say in `retry_after` when another try may succeed. A server that
cannot be reached is an `Unavailable` at once.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from pixtral.v1 import chat_pb2, chat_pb2_grpc
from pixtral_client.errors import from_rpc_error, raise_from
from pixtral_client.messages import Messages, is_text
from pixtral_client.requests import (
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT,
    Options,
    Tls,
    authorization,
    channel_options,
    chat_request,
    completion,
    image_file,
    time_left,
    upload,
)
from pixtral_client.results import (
    Completion,
    Model,
    TokenCount,
    UploadedImage,
    models_from_proto,
    uploaded_from_proto,
)
from pixtral_client.sent_images import KnownImages, Outgoing, Request
from pixtral_client.streams import AsyncStream, Stream

Response = TypeVar("Response")


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
        self._known = KnownImages()
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
        outgoing = Outgoing(
            chat_request(chat_pb2.CompleteRequest, messages, model, options), self._known
        )
        return completion(self._call(self._stub.Complete, outgoing, timeout))

    def stream(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> Stream:
        """Answers a conversation as the answer is generated."""
        outgoing = Outgoing(
            chat_request(chat_pb2.StreamCompleteRequest, messages, model, options), self._known
        )
        left = time_left(timeout or self._timeout)

        def begin() -> "grpc._CallIterator[chat_pb2.StreamCompleteResponse]":
            return self._stub.StreamComplete(
                outgoing.request, timeout=left(), metadata=self._metadata
            )

        return Stream(begin(), outgoing, begin)

    def count_tokens(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        continue_final_message: bool | None = None,
    ) -> TokenCount:
        """Counts a conversation's prompt tokens without running the model."""
        options = {
            "tools": tools,
            "tool_choice": tool_choice,
            "continue_final_message": continue_final_message,
        }
        outgoing = Outgoing(
            chat_request(chat_pb2.CountTokensRequest, messages, model, options), self._known
        )
        response = self._call(self._stub.CountTokens, outgoing, timeout)
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

    def put_image(self, image: Any, *, timeout: float | None = None) -> UploadedImage:
        """Uploads a picture, in any form that a message may hold it in.

        The result stands for the picture in messages of all the tenant's clients, until it was
        not used for an hour: then `NotFound` asks for the picture. Without this call, too, a client
        names by itself what it has sent before.
        """
        pieces = upload(image_file(image))
        try:
            response = self._stub.PutImage(
                pieces, timeout=timeout or self._timeout, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise_from(error)
        self._known.add(response.sha256)
        return uploaded_from_proto(response)

    def close(self) -> None:
        """Cancels what is running and closes the connection."""
        self._channel.close()

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Request, Response]",
        outgoing: Outgoing[Request],
        timeout: float | None,
    ) -> Response:
        left = time_left(timeout or self._timeout)
        while True:
            try:
                response = method(outgoing.request, timeout=left(), metadata=self._metadata)
            except grpc.RpcError as error:
                failed = from_rpc_error(error)
                if not outgoing.again(failed):
                    raise failed from None
            else:
                outgoing.answered()
                return response

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


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
        self._known = KnownImages()
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
        outgoing = await self._outgoing(
            messages, lambda: chat_request(chat_pb2.CompleteRequest, messages, model, options)
        )
        return completion(await self._call(self._stub.Complete, outgoing, timeout))

    async def stream(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> AsyncStream:
        """Answers a conversation as the answer is generated."""
        outgoing = await self._outgoing(
            messages, lambda: chat_request(chat_pb2.StreamCompleteRequest, messages, model, options)
        )
        left = time_left(timeout or self._timeout)

        def begin() -> grpc.aio.UnaryStreamCall[Any, chat_pb2.StreamCompleteResponse]:
            return self._stub.StreamComplete(
                outgoing.request, timeout=left(), metadata=self._metadata
            )

        return AsyncStream(begin(), outgoing, begin)

    async def count_tokens(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        continue_final_message: bool | None = None,
    ) -> TokenCount:
        """Counts a conversation's prompt tokens without running the model."""
        options = {
            "tools": tools,
            "tool_choice": tool_choice,
            "continue_final_message": continue_final_message,
        }
        outgoing = await self._outgoing(
            messages, lambda: chat_request(chat_pb2.CountTokensRequest, messages, model, options)
        )
        response = await self._call(self._stub.CountTokens, outgoing, timeout)
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

    async def put_image(self, image: Any, *, timeout: float | None = None) -> UploadedImage:
        """Uploads a picture, in any form that a message may hold it in.

        The result stands for the picture in messages of all the tenant's clients, until it was
        not used for an hour: then `NotFound` asks for the picture. Without this call, too, a client
        names by itself what it has sent before.
        """
        pieces = upload(await asyncio.to_thread(image_file, image))
        try:
            response = await self._stub.PutImage(
                pieces, timeout=timeout or self._timeout, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise_from(error)
        self._known.add(response.sha256)
        return uploaded_from_proto(response)

    async def close(self) -> None:
        """Cancels what is running and closes the connection."""
        await self._channel.close()

    async def _outgoing(self, messages: Messages, make: Callable[[], Request]) -> Outgoing[Request]:
        # A thread's turn takes longer than to convert a text.
        if is_text(messages):
            return Outgoing(make(), self._known)
        return await asyncio.to_thread(lambda: Outgoing(make(), self._known))

    async def _call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        outgoing: Outgoing[Request],
        timeout: float | None,
    ) -> Response:
        left = time_left(timeout or self._timeout)
        while True:
            try:
                response = await method(outgoing.request, timeout=left(), metadata=self._metadata)
            except grpc.RpcError as error:
                failed = from_rpc_error(error)
                if not outgoing.again(failed):
                    raise failed from None
            else:
                outgoing.answered()
                return response

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
