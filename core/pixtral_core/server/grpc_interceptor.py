"""Wraps every RPC: readiness gate, metrics, log line, span, and errors as statuses."""

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from prometheus_client import Counter, Histogram

from pixtral_core.concurrency.cancelling import reason_of
from pixtral_core.concurrency.shared_limit import SharedLimit
from pixtral_core.errors import ServingError, Unavailable, to_status
from pixtral_core.server.channel import MAX_MESSAGE_BYTES
from pixtral_core.server.reception import LARGE_BYTES, Incoming, Reception
from pixtral_core.server.socket_bytes import host_of
from pixtral_core.telemetry.metrics import HANDLED, SECONDS, STARTED
from pixtral_core.telemetry.request_log import REQUEST_ID, Call
from pixtral_core.telemetry.tracing import Tracer

# gRPC's classes are generic in their stubs alone.
if TYPE_CHECKING:
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
else:
    Context, Handler = grpc.aio.ServicerContext, grpc.RpcMethodHandler
Body: TypeAlias = Callable[[Any, Context], Awaitable[Any]]
# Runs before a call's message is received. It raises ServingError for a call that is refused
# whatever the message contains. Otherwise it returns the reception that counts the message, or None
# if nothing counts it.
EarlyCheck: TypeAlias = Callable[[Context], Reception | None]

# The most seconds for sending the status of a call to a client that does not read.
GIVE_UP_SECONDS = 1.0

# The limit on the size of a request to health or reflection. Anyone may send one, and it contains
# only the name of a service or a file.
MAX_UNGATED_BYTES = 4 << 10
# The limit on the bytes of all these requests that are being received.
UNGATED_BYTES_AT_ONCE = MAX_MESSAGE_BYTES


class Gate:
    """Refuses the tier's calls while the tier is not ready, and counts running calls."""

    def __init__(self, refusal: str) -> None:
        self._refusal: str | None = refusal
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def open(self) -> None:
        self._refusal = None

    def shut(self, refusal: str) -> None:
        self._refusal = refusal

    @property
    def is_open(self) -> bool:
        return self._refusal is None

    def enter(self, context: Context) -> None:
        """Counts the call until its status is sent. Raises Unavailable while the gate is shut."""
        self._enter()
        context.add_done_callback(lambda _: self._leave())  # type: ignore[arg-type]  # its stub

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Counts the work of the block. Raises Unavailable while the gate is shut."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    async def wait_idle(self, seconds: float) -> bool:
        """Waits until no call runs; False if that takes longer than `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _enter(self) -> None:
        if self._refusal is not None:
            raise Unavailable(self._refusal)
        self._in_flight += 1
        self._idle.clear()

    def _leave(self) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps each method once.

    `ungated` services answer while the gate is shut. Neither they nor the `quiet` methods
    (package.Service/Method) are logged or traced, because they are called all the time. The keys of
    `early_checks` are methods in the same form.
    """

    def __init__(
        self,
        gate: Gate,
        ungated: frozenset[str],
        quiet: frozenset[str],
        tracer: Tracer,
        early_checks: Mapping[str, EarlyCheck] = MappingProxyType({}),
    ) -> None:
        self._early_checks = early_checks
        self._gate = gate
        self._ungated = ungated
        self._quiet = quiet
        self._tracer = tracer
        self._wrapped: dict[str, Handler] = {}
        refusal = "the service receives as many bytes as it can at once: try again later"
        self._incoming = Incoming(SharedLimit(UNGATED_BYTES_AT_ONCE, refusal=refusal))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        wrapped = self._wrapped.get(details.method)
        if wrapped is None:
            handler = await continuation(details)
            if handler is None:
                return None
            wrapped = self._wrapped[details.method] = self._wrap(details.method, handler)
        return wrapped

    def _wrap(self, path: str, handler: Handler) -> Handler:
        full_name = path.removeprefix("/")
        service, _, name = full_name.partition("/")
        gate = None if service in self._ungated else self._gate
        is_recorded = gate is not None and full_name not in self._quiet
        method = _Method.of(handler, service, name)
        check = self._check_ungated if gate is None else self._early_checks.get(full_name)
        body = _body(handler, check)

        async def behavior(request: Any, context: Context) -> Any:
            call = self._begin(full_name, context) if is_recorded else None
            return await _run(method, gate, body, request, context, call)

        # The body receives the requests itself. It can refuse a call before its request comes, and
        # it answers and counts a malformed request. gRPC itself never answers a call that ends
        # without a request.
        return _MAKERS[handler.response_streaming](
            behavior,
            None,
            handler.response_serializer,
        )

    def _check_ungated(self, context: Context) -> Reception:
        return Reception(self._incoming, host_of(context.peer()), most=MAX_UNGATED_BYTES)

    def _begin(self, name: str, context: Context) -> Call:
        call = Call.begin(name, context.invocation_metadata() or (), self._tracer)
        # The id is sent with the status, so that a client can name a failed call when it asks about
        # it.
        context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        return call


# The makers of a handler with one response, and of one with a stream. Both take streams of
# requests.
_MAKERS = {
    False: grpc.stream_unary_rpc_method_handler,
    True: grpc.stream_stream_rpc_method_handler,
}
_TYPES = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}


@dataclass(frozen=True, slots=True)
class _Method:
    labels: tuple[str, str, str]
    started: Counter
    seconds: Histogram

    @classmethod
    def of(cls, handler: Handler, service: str, name: str) -> "_Method":
        labels = (_TYPES[handler.request_streaming, handler.response_streaming], service, name)
        return cls(labels, STARTED.labels(*labels), SECONDS.labels(*labels))


async def _run(
    method: _Method,
    gate: Gate | None,
    body: Body,
    request: Any,
    context: Context,
    call: Call | None,
) -> Any:
    method.started.inc()
    begun = time.perf_counter()
    granted: float | None = context.time_remaining()
    code = grpc.StatusCode.OK
    try:
        if gate is not None:
            gate.enter(context)
        return await body(request, context)
    except grpc.aio.AbortError:
        code = context.code()
        raise
    except grpc.aio.InternalError:
        # gRPC's own error: the client left while the server wrote to it or read from it.
        code = _why_cancelled(granted, context)
        raise
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and (given := given_up_for(error)) is not None:
            task.uncancel()
            code = given.code
            _note_reason(call, given)
            # The client may not have read all responses, but the call ends here.
            with suppress(TimeoutError):
                async with asyncio.timeout(GIVE_UP_SECONDS):
                    await _abort(context, to_status(given), error, call)
            raise
        if task is not None and task.cancelling():
            code = _why_cancelled(granted, context)
            raise
        # Something that the handler awaited was cancelled, and this call was not. gRPC would never
        # answer it.
        code = grpc.StatusCode.INTERNAL
        await _abort(context, to_status(error), error, call)
    except Exception as error:
        status = to_status(error)
        code = status.code
        _note_reason(call, error)
        await _abort(context, status, error, call)
    finally:
        HANDLED.labels(*method.labels, code.name).inc()
        method.seconds.observe(time.perf_counter() - begun)
        if call is not None:
            call.end(code)


def given_up_for(error: asyncio.CancelledError) -> ServingError | None:
    """The error with which a tier cancelled its own call, by `cancel_for`; None for another cancel.
    gRPC itself would never answer such a call."""
    given = reason_of(error)
    return given if isinstance(given, ServingError) else None


def _note_reason(call: Call | None, error: Exception) -> None:
    if call is not None and isinstance(error, ServingError):
        call.facts |= error.facts


async def _abort(
    context: Context, status: grpc.Status, error: BaseException, call: Call | None
) -> None:
    if context.done():
        raise error
    # `abort` replaces the metadata that was set earlier, so the request's id is added again.
    ours = () if call is None else ((REQUEST_ID, call.request_id),)
    await context.abort(status.code, status.details, (*status.trailing_metadata, *ours))


def _why_cancelled(granted: float | None, context: Context) -> grpc.StatusCode:
    # A deadline that passes arrives here as the client's cancel, a little early: the client started
    # to count earlier, and the value that it sends is rounded up by as much as a hundredth.
    if granted is not None and context.time_remaining() <= 0.05 + granted / 100:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED


def _body(handler: Handler, check: EarlyCheck | None) -> Body:
    inner: Any = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    parse = _strict(handler.request_deserializer)

    async def received(context: Context) -> Any:
        reception = None if check is None else check(context)
        read = context.read if reception is None else partial(reception.read, context)
        if handler.request_streaming:
            if reception is not None:
                reception.is_paced = False
            return _messages(read, parse)
        data = await read()
        if data is grpc.aio.EOF:
            raise _malformed()
        if len(data) > LARGE_BYTES:
            # gRPC has just copied the message, and parsing copies it again: others go in between.
            await asyncio.sleep(0)
        return parse(data)

    async def answer(requests: Any, context: Context) -> Any:
        return await inner(await received(context), context)

    async def stream(requests: Any, context: Context) -> None:
        # This coroutine writes the responses and does not yield them. A cancelled call thus closes
        # the servicer's generator at once, and not when the garbage collector finds it.
        request = await received(context)
        async with aclosing(inner(request, context)) as responses:
            del request
            async for response in responses:
                await context.write(response)

    async def refuse(request: Any, context: Context) -> None:
        raise ServingError(
            grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED", "this method is not served"
        )

    if inspect.isasyncgenfunction(inner):
        return stream
    # In a generated servicer, a method that nobody has implemented is not a coroutine function.
    return answer if inspect.iscoroutinefunction(inner) else refuse


async def _messages(
    read: Callable[[], Awaitable[Any]], parse: Callable[[bytes], Any]
) -> AsyncGenerator[Any]:
    while (data := await read()) is not grpc.aio.EOF:
        yield parse(data)


def _strict(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    def strict(data: bytes) -> Any:
        try:
            return data if parse is None else parse(data)
        except DecodeError:
            raise _malformed() from None

    return strict


def _malformed() -> ServingError:
    return ServingError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "MALFORMED_MESSAGE",
        "the request is not a message of this method's type",
    )
