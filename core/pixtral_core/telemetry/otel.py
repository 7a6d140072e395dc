"""OpenTelemetry spans, exported over OTLP from a thread of the SDK."""

import asyncio
import threading
import time
from contextlib import suppress
from importlib import metadata
from types import TracebackType

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from pixtral_core.concurrency.daemon_threads import call_in_loop
from pixtral_core.errors import ServingError
from pixtral_core.telemetry.tracing import Metadata, Span, Tracer, Value

FLUSH_SECONDS = 2.0
# The characters of `tracestate` that the standard asks every service to pass on. A longer one could
# leave no room for this service's own metadata.
MAX_TRACESTATE = 512

_PROPAGATOR = TraceContextTextMapPropagator()

# The names of OpenTelemetry's semantic conventions. Any other fact is `pixtral.` and its own name.
_STANDARD = {
    "operation": "gen_ai.operation.name",
    "model": "gen_ai.request.model",
    "completion_id": "gen_ai.response.id",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "ttft_seconds": "gen_ai.response.time_to_first_chunk",
    "http_status": "http.response.status_code",
}
# The codes that mean a fault of the server, by the same conventions.
_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class OtlpSpan(Span):
    """A span of OpenTelemetry. It has no parts if its trace is not sampled."""

    __slots__ = ("_span", "_tracer", "span_id", "trace_id")

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span
        context = span.get_span_context()
        sampled = context.trace_flags.sampled
        self.trace_id = f"{context.trace_id:032x}" if sampled else ""
        self.span_id = f"{context.span_id:016x}" if sampled else ""

    def child(self, name: str, *, is_call: bool = False, **attributes: Value) -> Span:
        if not self.trace_id:
            return self
        return OtlpSpan(self._tracer, self._begin(name, is_call, attributes))

    def part(self, name: str, began: float, ended: float, **attributes: Value) -> None:
        if not self.trace_id:
            return
        # Both clocks are read each time, because their difference changes when the wall clock is
        # set.
        offset = time.time_ns() - time.monotonic_ns()
        span = self._begin(name, False, attributes, round(began * 1e9) + offset)
        span.end(round(ended * 1e9) + offset)

    def set(self, **attributes: Value) -> None:
        self._span.set_attributes(_attributes(attributes))

    def event(self, name: str) -> None:
        self._span.add_event(name)

    def link(self, other: Span) -> None:
        if isinstance(other, OtlpSpan) and other.trace_id:
            self._span.add_link(other._span.get_span_context())

    def headers(self) -> Metadata:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._span))
        return tuple(carrier.items())

    def fail(self, reason: str) -> None:
        self._span.set_attribute("error.type", reason)
        self._span.set_status(StatusCode.ERROR)

    def answer(self, code: grpc.StatusCode) -> None:
        self._span.set_attribute("rpc.response.status_code", code.name)
        if code in _FAULTS:
            self.fail(code.name)

    def end(self) -> None:
        self._span.end()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.fail(_reason(error))
        self.end()

    def _begin(
        self, name: str, is_call: bool, attributes: dict[str, Value], start: int | None = None
    ) -> trace.Span:
        return self._tracer.start_span(
            name,
            context=trace.set_span_in_context(self._span),
            kind=SpanKind.CLIENT if is_call else SpanKind.INTERNAL,
            attributes=_attributes(attributes),
            start_time=start,
        )


class OtlpTracer(Tracer):
    """A tracer of OpenTelemetry's own SDK, which reads the OTEL_* variables."""

    def __init__(self, process: str) -> None:
        self._exporter = OTLPSpanExporter()
        # The SDK's own shutdown at exit has no time limit, and `close` has one.
        self._provider = TracerProvider(resource=_resource(process), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("pixtral-serve")

    def serve(self, method: str, metadata: Metadata) -> Span:
        carrier = dict(metadata)
        if len(carrier.get("tracestate", "")) > MAX_TRACESTATE:
            del carrier["tracestate"]
        span = self._tracer.start_span(
            method,
            context=_PROPAGATOR.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=_of_call(method),
        )
        return OtlpSpan(self._tracer, span)

    async def close(self) -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def flush() -> None:
            self._provider.shutdown()
            call_in_loop(loop, done.set)

        # A daemon thread, because the process would wait for the default executor at its end.
        threading.Thread(target=flush, name="flush-traces", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await done.wait()
        except TimeoutError:
            # This cancels the running export.
            self._exporter.shutdown()


def _resource(process: str) -> Resource:
    """`process` is the service's name unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES has a
    name."""
    attributes: dict[str, AttributeValue] = {"service.name": process}
    with suppress(metadata.PackageNotFoundError):
        attributes["service.version"] = metadata.version("pixtral-serve")
    return Resource.create(attributes | dict(OTELResourceDetector().detect().attributes))


def _of_call(method: str) -> dict[str, AttributeValue]:
    verb, is_http, route = method.partition(" ")
    if is_http:
        return {"http.request.method": verb, "http.route": route}
    return {"rpc.system.name": "grpc", "rpc.method": method}


def _attributes(values: dict[str, Value]) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {}
    for name, value in values.items():
        match name, value:
            case "finish_reason", _:
                found["gen_ai.response.finish_reasons"] = tuple(str(value).split(","))
            case "peer", str():
                host, _, port = value.rpartition(":")
                found["server.address"] = host.strip("[]")
                if port.isascii() and port.isdigit():
                    found["server.port"] = int(port)
            case _:
                found[_STANDARD.get(name, f"pixtral.{name}")] = value
    return found


def _reason(error: BaseException) -> str:
    if isinstance(error, ServingError):
        return error.reason
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code().name
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "CANCELLED"
    return type(error).__name__
