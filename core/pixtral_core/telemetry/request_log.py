"""The current request: its id, its span, and the facts of its log line."""

import logging
import re
import time
import uuid
from collections.abc import Iterable
from contextvars import ContextVar

import grpc

from pixtral_core.telemetry.tracing import OFF, Metadata, Span, Tracer, Value

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"

# An id with other characters could look like other fields of a log line.
_WELL_FORMED = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)


class Call:
    """One request in one tier, from `begin` to `end`, both in the task that serves it.

    Attributes:
        method: package.Service/Method; for HTTP the verb and the route, such as POST /v1/models.
        request_id: the request's id, which is the same in every tier.
        span: the span of the whole call.
        facts: facts for the log line, bounded in number and size, without prompts or images.
    """

    __slots__ = ("_began", "facts", "method", "request_id", "span")

    def __init__(self, method: str, request_id: str, span: Span) -> None:
        self.method = method
        self.request_id = request_id
        self.span = span
        self.facts: dict[str, Value] = {}
        self._began = time.monotonic()

    @classmethod
    def begin(
        cls, method: str, metadata: Iterable[tuple[str, str | bytes]], tracer: Tracer
    ) -> "Call":
        """Makes the new call the current one of this task, and of the tasks that it starts."""
        texts = tuple((key, value) for key, value in metadata if isinstance(value, str))
        call = cls(method, _request_id(texts), tracer.serve(method, texts))
        _CURRENT.set(call)
        return call

    @property
    def seconds(self) -> float:
        """The seconds since the call began."""
        return time.monotonic() - self._began

    def end(self, code: grpc.StatusCode) -> None:
        """Writes the call's one line and ends its span."""
        ending = {"method": self.method, "code": code.name, "seconds": self.seconds}
        logger.info("call", extra={"facts": ending | self.facts})
        self.span.set(**self.facts)
        self.span.answer(code)
        self.span.end()


_CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)


def current() -> Call | None:
    return _CURRENT.get()


def note(**facts: Value) -> None:
    """Adds facts to the current call's log line and span."""
    call = _CURRENT.get()
    if call is not None:
        call.facts.update(facts)


def count(name: str) -> None:
    """Counts one more in the current call's log line and span."""
    call = _CURRENT.get()
    if call is not None:
        call.facts[name] = int(call.facts.get(name, 0)) + 1


def first_token() -> None:
    """Notes that the current call has produced its first token."""
    call = _CURRENT.get()
    if call is not None:
        call.facts["ttft_seconds"] = call.seconds
        call.span.event("first_token")


def current_span() -> Span:
    call = _CURRENT.get()
    return OFF if call is None else call.span


def outgoing(span: Span) -> Metadata:
    """The metadata of a call to another tier, with `span` as its parent."""
    call = _CURRENT.get()
    return () if call is None else ((REQUEST_ID, call.request_id), *span.headers())


def _request_id(metadata: Metadata) -> str:
    given = next((value for key, value in metadata if key == REQUEST_ID), "")
    return given if _WELL_FORMED.fullmatch(given) else uuid.uuid4().hex
