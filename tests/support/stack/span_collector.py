"""A small receiver of OTLP over gRPC on loopback, and its traces as text."""

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

SECONDS = 20.0


@dataclass(frozen=True)
class SpanSeen:
    """A span. `kind` is the number of its SpanKind; `links` are span ids; times are in seconds."""

    service: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    began: float
    ended: float
    attributes: dict[str, Any]
    events: tuple[str, ...]
    links: tuple[str, ...]
    is_error: bool


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Collects spans; `raw` has all received bytes."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self.spans: list[SpanSeen] = []
        self.raw = b""
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            self, self._server
        )
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(  # noqa: N802 - the proto's name
        self, request: Any, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._arrived:
            self.raw += request.SerializeToString()
            self.spans += _read(request)
            self._arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait(self, condition: Callable[[list[SpanSeen]], bool]) -> list[SpanSeen]:
        """Waits until the condition holds for the spans; returns all of them."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: condition(self.spans), SECONDS):
                names = [f"{span.service} {span.name}" for span in self.spans]
                raise AssertionError(f"not within {SECONDS:g} s; spans so far: {names}")
            return list(self.spans)

    def stop(self) -> None:
        self._server.stop(None).wait()


@contextmanager
def collector() -> Iterator[Collector]:
    receiver = Collector()
    try:
        yield receiver
    finally:
        receiver.stop()


def tree(spans: list[SpanSeen]) -> str:
    """One trace as text: when each span began, how long it took, and its attributes."""
    by_parent: dict[str, list[SpanSeen]] = {}
    known = {span.span_id for span in spans}
    for span in sorted(spans, key=lambda span: span.began):
        by_parent.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)
    zero = min(span.began for span in spans)

    def lines(parent: str, indent: str) -> Iterator[str]:
        for span in by_parent.get(parent, []):
            service, name = span.service.removeprefix("pixtral-"), span.name.rpartition(".")[2]
            at, took = 1e3 * (span.began - zero), 1e3 * (span.ended - span.began)
            where = f"{indent}{service} {name}"
            yield f"{at:6.1f} {took:6.1f} ms  {where:<36} {_told(span)}".rstrip()
            yield from lines(span.span_id, indent + "  ")

    return "\n".join(lines("", ""))


# Attributes of the request, without those of the RPC.
_SHOWN = re.compile(r"(?:pixtral|gen_ai\.usage)\.(.*)")


def _told(span: SpanSeen) -> str:
    return " ".join(
        f"{shown[1]}={round(value, 4) if isinstance(value, float) else value}"
        for name, value in span.attributes.items()
        if (shown := _SHOWN.fullmatch(name))
    )


def _read(request: Any) -> Iterator[SpanSeen]:
    for resource_spans in request.resource_spans:
        resource = _values(resource_spans.resource.attributes)
        for scope in resource_spans.scope_spans:
            for span in scope.spans:
                yield SpanSeen(
                    service=resource["service.name"],
                    name=span.name,
                    kind=span.kind,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    began=span.start_time_unix_nano / 1e9,
                    ended=span.end_time_unix_nano / 1e9,
                    attributes=_values(span.attributes),
                    events=tuple(event.name for event in span.events),
                    links=tuple(link.span_id.hex() for link in span.links),
                    is_error=span.status.code == span.status.STATUS_CODE_ERROR,
                )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)
