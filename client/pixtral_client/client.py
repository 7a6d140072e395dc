"""`Client`: the gateway's client. `AsyncClient` has the same methods for asyncio.

Both only send and wait. Shared modules decide which requests to send again and when (`retries`),
the order of many conversations (`batch`), which tool to run (`functions`) and the form of a request
(`requests`). The sync client runs no event loop, because gRPC's asyncio logs errors in a program
with two loops.
"""

import queue
import threading
from collections.abc import (
    Callable,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import TracebackType
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
from pixtral_client.messages import Messages
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
from pixtral_client.streams import Stream
from pixtral_client.structured import ParsedCompletion

Response = TypeVar("Response")
T = TypeVar("T")

# Threads that read and hash the images of a sync `map`.
_READERS = 4


class Client(Requests):
    """A connection to a gateway. Use it from any thread; close it, or use it as a context manager.

    Args:
        target: `host:port` of the gateway.
        tls: the connection's certificates; `Tls()` trusts the system's authorities. None is
            plaintext.
        api_key: the tenant's key; by default that of PIXTRAL_API_KEY. The client sends it over TLS
            only, except to this machine.
        timeout: seconds that a request may take with all of its tries, unless the call sets its
            own.
        max_retries: how often the client sends a request again that the server refused
            (`Overloaded`) or could not do (`Unavailable`). It waits as long as the server says or,
            without such a time, half a second, then one, each with a random part. It gives up if
            the timeout does not allow the wait. A stream is sent again only before its first delta.
            0 sends each request once.

    Every method raises `PixtralError` or a subclass of it. It raises `TypeError` or `ValueError`,
    and sends nothing, if the messages cannot be sent.
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
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, tls.credentials(), options)
        self._stub = chat_pb2_grpc.ChatServiceStub(self._channel)
        self._closed = threading.Event()

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        response_model: None = None,
        **options: Unpack[Options],
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        response_model: type[T],
        **options: Unpack[Options],
    ) -> ParsedCompletion[T]: ...

    def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        response_model: type[Any] | None = None,
        **options: Unpack[Options],
    ) -> Completion:
        """Answers a conversation.

        Args:
            messages: dicts with `role` and `content`, as in OpenAI's API and vLLM's `LLM.chat`.
                An image is a `pathlib.Path`, bytes, a PIL image or a URL.
            model: a name that `models` lists; None for the gateway's own model.
            timeout: seconds with all tries; None for the client's timeout.
            response_model: a pydantic model, or another type that pydantic reads. The answer
                fits its JSON schema, and the result's `parsed` is a value of it.
            options: the fields of `Options`.

        Raises:
            AnswerNotParsed: the answer is not a value of `response_model`.
        """
        wanted, read = read_form(response_model, options)
        outgoing = self._outgoing(chat_pb2.CompleteRequest, messages, model, wanted)
        answer = completion(self._call(self._stub.Complete, outgoing, timeout))
        found: Completion = read(answer)
        return found

    def stream(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> Stream:
        """Streams an answer while it is generated. The arguments are those of `chat`."""
        outgoing = self._outgoing(chat_pb2.StreamCompleteRequest, messages, model, options)
        tries = self._tries(timeout, outgoing)

        def begin() -> "grpc._CallIterator[chat_pb2.StreamCompleteResponse]":
            return self._stub.StreamComplete(
                outgoing.request, timeout=tries.left(), metadata=self._metadata
            )

        return Stream(begin(), tries, begin)

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
    ) -> Generator[Outcome[Completion], None, None]: ...

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
    ) -> Generator[Outcome[ParsedCompletion[T]], None, None]: ...

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
    ) -> Generator[Outcome[Any], None, None]:
        """Answers many conversations, several at once, and yields an `Outcome` for each, in order.

        It reads `conversations` as it goes, at most four times `concurrency` ahead of the next
        outcome. A conversation that fails does not end the others. If the gateway refuses a
        conversation because of overload, the client runs fewer at once and sends it again, as often
        as the timeout allows. Closing or dropping the generator cancels everything that runs.

        Args:
            conversations: message lists, each as for `chat`.
            concurrency: the most conversations that run at once.
            progress: True shows a line on standard error; a function gets each `BatchProgress`.

        The other arguments are those of `chat`, and apply to every conversation. `timeout` starts
        with the first try of each.
        """
        wanted, read = read_form(response_model, options)
        prepare = partial(self._prepare, model=model, timeout=timeout, options=wanted)
        return self._mapped(Batch(conversations, concurrency, reporter(progress)), prepare, read)

    def _mapped(
        self, batch: Batch[CompletionT], prepare: Callable[[Item], None], read: Read[CompletionT]
    ) -> Generator[Outcome[CompletionT], None, None]:
        # An item that a thread has prepared, or an item whose RPC has ended.
        events: queue.SimpleQueue[tuple[Item, Any]] = queue.SimpleQueue()
        calls: dict[int, Any] = {}

        def send(item: Item) -> None:
            call = self._stub.Complete.future(
                item.outgoing.request, timeout=item.begun.left(), metadata=self._metadata
            )
            calls[item.index] = call
            call.add_done_callback(lambda done: events.put((item, done)))

        def read_in(item: Item) -> None:
            future = readers.submit(prepare, item)
            future.add_done_callback(lambda done: events.put((item, done)))

        readers = ThreadPoolExecutor(_READERS, thread_name_prefix="pixtral-map")
        try:
            while True:
                yield from batch.ready()
                if batch.is_over:
                    return
                while item := batch.take():
                    if item.tries is None:
                        read_in(item)
                    else:
                        send(item)
                with suppress(queue.Empty):
                    item, done = events.get(timeout=batch.wait())
                    if calls.pop(item.index, None) is None:
                        error = done.exception()
                        if isinstance(error, TypeError | ValueError):
                            batch.failed(item, error)
                        elif error is not None:
                            raise error
                        else:
                            send(item)
                    else:
                        settle(batch, item, done.exception() or done.result(), read)
        finally:
            batch.close()
            for call in calls.values():
                call.cancel()
            readers.shutdown(cancel_futures=True)

    def run_tools(
        self,
        messages: Messages,
        functions: Sequence[Function],
        *,
        max_rounds: int = DEFAULT_MAX_ROUNDS,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> ToolRun:
        """Answers a conversation with Python functions as tools.

        It runs the tools that the model calls, and asks again with the results, until an answer
        calls no tool. The schema of a function comes from its annotations and docstring
        (`pixtral_client.functions`). A function returns text or a JSON value. It raises `ToolError`
        to report an error to the model.

        Args:
            functions: the tools; the model decides which run, with which arguments.
            max_rounds: the most answers.

        The other arguments are those of `chat`, for each answer. `tool_choice` applies to the first
        answer only.

        Raises:
            TooManyRounds: the last answer still calls a tool.
        """
        loop = tool_loop(messages, functions, max_rounds, options)
        step = next(loop)
        while True:
            try:
                if isinstance(step, Ask):
                    result: Any = self.chat(
                        step.messages, model=model, timeout=timeout, **step.options
                    )
                else:
                    result = step.function(**step.arguments)
                advance = partial(loop.send, result)
            except ToolError as error:
                advance = partial(loop.throw, error)
            try:
                step = advance()
            except StopIteration as end:
                return run_of(end)

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
        outgoing = self._outgoing(chat_pb2.CountTokensRequest, messages, model, options)
        response = self._call(self._stub.CountTokens, outgoing, timeout)
        return TokenCount(response.prompt_tokens, response.image_tokens)

    def models(self, *, timeout: float | None = None) -> list[Model]:
        """Lists the models that the gateway serves."""
        tries = self._tries(timeout)
        request = chat_pb2.ListModelsRequest()
        response = self._run(
            lambda: self._stub.ListModels(request, timeout=tries.left(), metadata=self._metadata),
            tries,
        )
        return models_from_proto(response)

    def put_image(self, image: Any, *, timeout: float | None = None) -> UploadedImage:
        """Uploads an image, in any form that a message can have.

        The result replaces the image in messages of all the tenant's clients. It stays valid until
        nobody has used it for an hour; then a request with it raises `NotFound`. Without
        `put_image`, a client refers by itself to the images that it has sent.
        """
        data = image_file(image)
        tries = self._tries(timeout)
        response = self._run(
            lambda: self._stub.PutImage(
                upload(data), timeout=tries.left(), metadata=self._metadata
            ),
            tries,
        )
        self._known.add(response.sha256)
        return uploaded_from_proto(response)

    def close(self) -> None:
        """Cancels all running requests and closes the connection."""
        self._closed.set()
        self._channel.close()

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Request, Response]",
        outgoing: Outgoing[Request],
        timeout: float | None,
    ) -> Response:
        tries = self._tries(timeout, outgoing)
        return self._run(
            lambda: method(outgoing.request, timeout=tries.left(), metadata=self._metadata), tries
        )

    def _run(self, send: Callable[[], Response], tries: Tries) -> Response:
        while True:
            try:
                response = send()
            except grpc.RpcError as error:
                failed = from_rpc_error(error)
                wait = tries.wait_after(failed)
                if wait is None or self._closed.wait(wait):
                    raise failed from None
            else:
                tries.answered()
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
