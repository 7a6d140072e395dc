"""Wraps every HTTP request: readiness gate, metrics, log line, span, and errors as responses.

`pixtral_core.server.grpc_interceptor` does the same for gRPC.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from types import MappingProxyType
from typing import Any

import grpc
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route, Router
from starlette.types import Message, Receive, Scope, Send

from pixtral_core.concurrency.cancelling import cancel_for, reason_of
from pixtral_core.errors import ServingError, Unavailable, client_error
from pixtral_core.server.grpc_interceptor import GIVE_UP_SECONDS, Gate
from pixtral_core.telemetry.request_log import REQUEST_ID, Call
from pixtral_core.telemetry.tracing import Tracer
from pixtral_gateway.api.http.error_form import OPENAI, STREAM_ERROR, ErrorForm
from pixtral_gateway.api.openai.errors import Refused, headers_of, status_of
from pixtral_gateway.metrics import HTTP_REQUESTS, HTTP_SECONDS

# The status in metrics for requests whose clients left without an answer, as in nginx.
CLIENT_GONE = 499
# METHODS have labels of their own in metrics. NO_ROUTE is the label of requests without a route.
METHODS = frozenset({"GET", "POST"})
NO_ROUTE = "none"
EVENT_STREAM = b"text/event-stream"
NO_FORMS: Mapping[str, ErrorForm] = MappingProxyType({})


class ClientGone(Exception):
    """The client has closed its connection, so nobody reads an answer."""


@asynccontextmanager
async def while_client_waits(receive: Receive) -> AsyncIterator[None]:
    """Cancels the block as soon as the client leaves. The body must have been read."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - for mypy: a coroutine runs in a task

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        cancel_for(task, ClientGone())

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


class RequestMiddleware:
    """An ASGI application around a router whose routes raise ServingError.

    Routes of `quiet` are answered while the gate is shut, and are neither logged nor traced,
    because probes use them all the time.
    """

    def __init__(
        self,
        router: Router,
        *,
        quiet: frozenset[str],
        gate: Gate,
        tracer: Tracer,
        forms: Mapping[str, ErrorForm] = NO_FORMS,
    ) -> None:
        """`forms` has the routes whose errors do not have OpenAI's form."""
        self._router = router
        self._forms = forms
        self._quiet = quiet | {NO_ROUTE}
        self._gate = gate
        self._tracer = tracer
        self._tasks: set[asyncio.Task[Any]] = set()
        for route in router.routes:
            if isinstance(route, Route):
                # The counter is shown at zero, because a rate misses the event that creates a
                # counter.
                for method in (route.methods or set()) & METHODS:
                    HTTP_REQUESTS.labels(method, route.path_format, "200")
                    HTTP_SECONDS.labels(method, route.path_format)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for mypy: a coroutine runs in a task
        self._tasks.add(task)
        try:
            await self._serve(scope, receive, send)
        finally:
            self._tasks.discard(task)

    async def end(self) -> None:
        """Ends running requests with an error that says that the server is shutting down."""
        for task in self._tasks:
            cancel_for(task, Unavailable("the server is shutting down"))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * GIVE_UP_SECONDS)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.perf_counter()
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = _route(self._router, scope)
        call = None
        if route not in self._quiet:
            call = Call.begin(f"{method} {route}", _texts(scope), self._tracer)
        scope = {**scope, "app": self}
        reply = _Reply(send, self._gate, call, self._forms.get(route, OPENAI), scope)
        code = grpc.StatusCode.CANCELLED
        try:
            code = await self._answer(scope, receive, reply, call)
        finally:
            HTTP_REQUESTS.labels(method, route, str(reply.status)).inc()
            HTTP_SECONDS.labels(method, route).observe(time.perf_counter() - begun)
            if call is not None:
                call.facts["http_status"] = reply.status
                call.end(code)

    async def _answer(
        self, scope: Scope, receive: Receive, reply: "_Reply", call: Call | None
    ) -> grpc.StatusCode:
        error: ServingError
        with ExitStack() as held:
            try:
                if call is not None:
                    held.enter_context(self._gate.in_flight())
                await self._router(scope, receive, reply.send)
                return grpc.StatusCode.OK
            except HTTPException as refused:
                error = _refused(refused)
            except ClientGone:
                return grpc.StatusCode.CANCELLED
            except asyncio.CancelledError as cancelled:
                found = self._why_cancelled(cancelled)
                if found is None:
                    return grpc.StatusCode.CANCELLED
                error = found
            except Exception as unexpected:
                error = client_error(unexpected)
            if call is not None:
                call.facts |= error.facts
            # The client may not have read the whole answer yet, but the request ends here.
            with suppress(TimeoutError):
                async with asyncio.timeout(GIVE_UP_SECONDS):
                    await reply.fail(error)
            return error.code

    def _why_cancelled(self, cancelled: asyncio.CancelledError) -> ServingError | None:
        """The answer for the client, or None if the client has left. Raises errors that the request
        did not cause."""
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            # Something that the request awaited was cancelled, and the request was not.
            return client_error(cancelled)
        reason = reason_of(cancelled)
        if not isinstance(reason, ServingError | ClientGone):
            raise cancelled
        while task.uncancel():
            pass
        return reason if isinstance(reason, ServingError) else None


class _Reply:
    """Sends the answer to one request, and remembers how much of it was sent."""

    def __init__(
        self, send: Send, gate: Gate, call: Call | None, form: ErrorForm, scope: Scope
    ) -> None:
        self._send = send
        self._gate = gate
        self._call = call
        self._form = form
        self._scope = scope
        self._is_stream = False
        self.status = CLIENT_GONE

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            if self._call is not None:
                names = (REQUEST_ID, self._form.request_id)
                value = self._call.request_id.encode()
                headers.extend((name.encode(), value) for name in names if name)
            if not self._gate.is_open:
                # The client must send its next request to another process.
                headers.append((b"connection", b"close"))
            self._is_stream = any(value.startswith(EVENT_STREAM) for _, value in headers)
            self.status = message["status"]
            message = {**message, "headers": headers}
        await self._send(message)

    async def fail(self, error: ServingError) -> None:
        if self.status == CLIENT_GONE:
            body = json.dumps(self._form.body(error)).encode()
            headers = {"content-type": "application/json", **headers_of(error)}
            headers["content-length"] = str(len(body))
            pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
            start = {"type": "http.response.start", "status": status_of(error), "headers": pairs}
            await self.send(start)
        elif self._is_stream:
            body = self._scope.get(STREAM_ERROR, self._form.event)(error)
        else:
            return
        await self.send({"type": "http.response.body", "body": body})


def _route(router: Router, scope: Scope) -> str:
    """The pattern of the route, because metrics and logs need few names."""
    for route in router.routes:
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
            return route.path_format
    return NO_ROUTE


def _refused(refused: HTTPException) -> Refused:
    if refused.status_code == 405:
        reason, message = "METHOD_NOT_ALLOWED", "this route does not take that method"
    else:
        reason, message = "NOT_FOUND", "there is no such route"
    return Refused(
        refused.status_code,
        reason,
        message,
        code=grpc.StatusCode.UNIMPLEMENTED,
        headers={name.lower(): value for name, value in (refused.headers or {}).items()},
    )


def _texts(scope: Scope) -> list[tuple[str, str | bytes]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
