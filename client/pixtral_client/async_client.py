"""`AsyncClient`: the gateway's client for asyncio. `Client` is the same without asyncio."""

import asyncio
import inspect
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from functools import partial
from typing import Any, Self, TypeVar, Unpack, overload

import grpc

from pixtral.v1 import chat_pb2, chat_pb2_grpc
from pixtral_client.batch import (
    DEFAULT_CONCURRENCY,
    Batch,
    CompletionT,
    Item,
    Outcome,
    Report,
    reporter,
)
from pixtral_client.client_base import Read, Requests, read_form, run_of, settle
from pixtral_client.errors import from_rpc_error
from pixtral_client.functions import (
    DEFAULT_MAX_ROUNDS,
    Ask,
    Function,
    ToolError,
    ToolRun,
    tool_loop,
)
from pixtral_client.messages import Messages, is_text
from pixtral_client.requests import (
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT,
    Options,
    Tls,
    channel_options,
    completion,
    image_file,
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
from pixtral_client.retries import DEFAULT_MAX_RETRIES, Tries
from pixtral_client.sent_images import Outgoing, Request
from pixtral_client.streams import AsyncStream
from pixtral_client.structured import ParsedCompletion

Response = TypeVar("Response")
T = TypeVar("T")


class AsyncClient(Requests):
    """`Client` for asyncio, with the same methods as coroutines. Make it where the event loop runs.

    Images are read, fetched and encoded in a thread, so the loop never waits for that.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: Tls | None = None,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_retries: int = DEFAULT_MAX_RETRIES,
    ) -> None:
        super().__init__(target, tls, api_key, timeout, max_retries)
        options = channel_options(target)
        if tls is None:
            self._channel = grpc.aio.insecure_channel(target, options)
        else:
            self._channel = grpc.aio.secure_channel(target, tls.credentials(), options)
        self._stub = chat_pb2_grpc.ChatServiceStub(self._channel)

    @overload
    async def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        response_model: None = None,
        **options: Unpack[Options],
    ) -> Completion: ...

    @overload
    async def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        response_model: type[T],
        **options: Unpack[Options],
    ) -> ParsedCompletion[T]: ...

    async def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        response_model: type[Any] | None = None,
        **options: Unpack[Options],
    ) -> Completion:
        """Answers a conversation; see `Client.chat`."""
        wanted, read = read_form(response_model, options)
        make = partial(self._outgoing, chat_pb2.CompleteRequest, messages, model, wanted)
        outgoing = await _made(make, messages)
        answer = completion(await self._call(self._stub.Complete, outgoing, timeout))
        found: Completion = read(answer)
        return found

    async def stream(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> AsyncStream:
        """Streams an answer while it is generated. The arguments are those of `chat`."""
        make = partial(self._outgoing, chat_pb2.StreamCompleteRequest, messages, model, options)
        outgoing = await _made(make, messages)
        tries = self._tries(timeout, outgoing)

        def begin() -> grpc.aio.UnaryStreamCall[Any, chat_pb2.StreamCompleteResponse]:
            return self._stub.StreamComplete(
                outgoing.request, timeout=tries.left(), metadata=self._metadata
            )

        return AsyncStream(begin(), tries, begin)

    @overload
    def map(
        self,
        conversations: Iterable[Messages],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        progress: bool | Report = False,
        model: str | None = None,
        timeout: float | None = None,
        response_model: None = None,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Outcome[Completion], None]: ...

    @overload
    def map(
        self,
        conversations: Iterable[Messages],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        progress: bool | Report = False,
        model: str | None = None,
        timeout: float | None = None,
        response_model: type[T],
        **options: Unpack[Options],
    ) -> AsyncGenerator[Outcome[ParsedCompletion[T]], None]: ...

    def map(
        self,
        conversations: Iterable[Messages],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        progress: bool | Report = False,
        model: str | None = None,
        timeout: float | None = None,
        response_model: type[Any] | None = None,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Outcome[Any], None]:
        """Answers many conversations, several at once, and yields an `Outcome` for each, in order.

        See `Client.map`. Cancelling the task that iterates, or `aclose()`, cancels all that runs.
        """
        wanted, read = read_form(response_model, options)
        prepare = partial(self._prepare, model=model, timeout=timeout, options=wanted)
        return self._mapped(Batch(conversations, concurrency, reporter(progress)), prepare, read)

    async def _mapped(
        self, batch: Batch[CompletionT], prepare: Callable[[Item], None], read: Read[CompletionT]
    ) -> AsyncGenerator[Outcome[CompletionT], None]:
        async def run(item: Item) -> None:
            if item.tries is None:
                try:
                    await _made(partial(prepare, item), item.messages)
                except (TypeError, ValueError) as error:
                    batch.failed(item, error)
                    return
            try:
                result: Any = await self._stub.Complete(
                    item.outgoing.request, timeout=item.begun.left(), metadata=self._metadata
                )
            except grpc.RpcError as error:
                result = error
            settle(batch, item, result, read)

        tasks: set[asyncio.Task[None]] = set()
        try:
            while True:
                for outcome in batch.ready():
                    yield outcome
                if batch.is_over:
                    return
                while item := batch.take():
                    tasks.add(asyncio.create_task(run(item)))
                wait = batch.wait()
                if not tasks:
                    await asyncio.sleep(wait or 0.0)
                    continue
                ended, tasks = await asyncio.wait(
                    tasks, timeout=wait, return_when=asyncio.FIRST_COMPLETED
                )
                for task in ended:
                    task.result()
        finally:
            batch.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def run_tools(
        self,
        messages: Messages,
        functions: Sequence[Function],
        *,
        max_rounds: int = DEFAULT_MAX_ROUNDS,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> ToolRun:
        """Answers a conversation with Python functions as tools; see `Client.run_tools`.

        Coroutine functions are awaited; others run in a thread.
        """
        loop = tool_loop(messages, functions, max_rounds, options)
        step = next(loop)
        while True:
            try:
                if isinstance(step, Ask):
                    result: Any = await self.chat(
                        step.messages, model=model, timeout=timeout, **step.options
                    )
                elif inspect.iscoroutinefunction(step.function):
                    result = await step.function(**step.arguments)
                else:
                    result = await asyncio.to_thread(step.function, **step.arguments)
                advance = partial(loop.send, result)
            except ToolError as error:
                advance = partial(loop.throw, error)
            try:
                step = advance()
            except StopIteration as end:
                return run_of(end)

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
        make = partial(self._outgoing, chat_pb2.CountTokensRequest, messages, model, options)
        outgoing = await _made(make, messages)
        response = await self._call(self._stub.CountTokens, outgoing, timeout)
        return TokenCount(response.prompt_tokens, response.image_tokens)

    async def models(self, *, timeout: float | None = None) -> list[Model]:
        """Lists the models that the gateway serves."""
        tries = self._tries(timeout)
        request = chat_pb2.ListModelsRequest()
        response = await self._run(
            lambda: self._stub.ListModels(request, timeout=tries.left(), metadata=self._metadata),
            tries,
        )
        return models_from_proto(response)

    async def put_image(self, image: Any, *, timeout: float | None = None) -> UploadedImage:
        """Uploads an image in any form that a message can have; see `Client.put_image`."""
        data = await asyncio.to_thread(image_file, image)
        tries = self._tries(timeout)
        response = await self._run(
            lambda: self._stub.PutImage(
                upload(data), timeout=tries.left(), metadata=self._metadata
            ),
            tries,
        )
        self._known.add(response.sha256)
        return uploaded_from_proto(response)

    async def close(self) -> None:
        """Cancels all running requests and closes the connection."""
        await self._channel.close()

    async def _call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        outgoing: Outgoing[Request],
        timeout: float | None,
    ) -> Response:
        tries = self._tries(timeout, outgoing)
        return await self._run(
            lambda: method(outgoing.request, timeout=tries.left(), metadata=self._metadata), tries
        )

    async def _run(self, send: Callable[[], Awaitable[Response]], tries: Tries) -> Response:
        while True:
            try:
                response = await send()
            except grpc.RpcError as error:
                failed = from_rpc_error(error)
                wait = tries.wait_after(failed)
                if wait is None:
                    raise failed from None
                await asyncio.sleep(wait)
            else:
                tries.answered()
                return response

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


async def _made(make: Callable[[], T], messages: Messages) -> T:
    """The result of `make`, in a thread if an image of the messages must be read or encoded."""
    # A switch to a thread takes longer than converting a text.
    return make() if is_text(messages) else await asyncio.to_thread(make)
