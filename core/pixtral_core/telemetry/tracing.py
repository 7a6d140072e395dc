"""Spans as the tiers make them.

`pixtral_core.telemetry.otel` makes real spans, and is imported only if an OTLP endpoint is set.
Without an endpoint, each span is `OFF`, which does nothing.
"""

import os
from types import TracebackType
from typing import Self, TypeAlias

import grpc

from pixtral_core.errors import StartupError

Value: TypeAlias = bool | int | float | str
Metadata: TypeAlias = tuple[tuple[str, str], ...]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Span:
    """A piece of work in a trace. `end`, or leaving its `with` block, ends it.

    No span is "the current one" of a task: the code that makes a child names the parent. Work for
    several callers, and a generator that another task closes, thus cannot mix up traces.

    Attributes:
        trace_id: 32 hexadecimal digits; empty if nothing is recorded.
        span_id: 16 hexadecimal digits; empty if nothing is recorded.
    """

    __slots__ = ()

    trace_id = ""
    span_id = ""

    def child(self, name: str, *, is_call: bool = False, **attributes: Value) -> "Span":
        """Begins a part of this work; `is_call` means that another process does it."""
        return self

    def part(self, name: str, began: float, ended: float, **attributes: Value) -> None:
        """Adds a part that has ended; its times are on the monotonic clock, in seconds."""

    def set(self, **attributes: Value) -> None:
        pass

    def event(self, name: str) -> None:
        pass

    def link(self, other: "Span") -> None:
        """Records that this work waits for the work of the other span."""

    def headers(self) -> Metadata:
        """W3C Trace Context, for a call that is part of this work."""
        return ()

    def fail(self, reason: str) -> None:
        """Records a failure. `reason` has few values: a status code's name, or an exception's
        type."""

    def answer(self, code: grpc.StatusCode) -> None:
        """Records the status of this span's call."""

    def end(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


OFF = Span()


class Tracer:
    """Begins the spans that have no parent in this process. This class itself begins none."""

    def serve(self, method: str, metadata: Metadata) -> Span:
        """Begins the span of a call with `metadata`. `method` is package.Service/Method, or for
        HTTP the verb and the route."""
        return OFF

    async def close(self) -> None:
        """Sends the remaining spans, for at most two seconds."""


def start_tracing(process: str) -> Tracer:
    """A tracer that the standard OTEL_* variables describe.

    `process` names the service unless OTEL_SERVICE_NAME does. Raises StartupError for an
    unsupported protocol.
    """
    if not _is_on():
        return Tracer()
    name, protocol = _first(_PROTOCOLS)
    if protocol not in ("", "grpc"):
        raise StartupError(
            f"{name} is {protocol!r}: traces use OTLP over gRPC, so set it to grpc or leave it out"
        )
    from pixtral_core.telemetry.otel import OtlpTracer

    return OtlpTracer(process)


def _is_on() -> bool:
    return (
        _first(_ENDPOINTS) != ("", "")
        and os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
        and os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() != "none"
    )


def _first(names: tuple[str, ...]) -> tuple[str, str]:
    """The first variable that is set, and its value."""
    pairs = ((name, os.environ.get(name, "").strip()) for name in names)
    return next(((name, value) for name, value in pairs if value), ("", ""))
