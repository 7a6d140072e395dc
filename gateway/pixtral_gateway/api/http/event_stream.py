"""A response of server-sent events."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.types import Receive, Scope, Send

from pixtral_core.errors import ServingError
from pixtral_gateway.api.http.error_form import STREAM_ERROR
from pixtral_gateway.api.http.middleware import EVENT_STREAM, while_client_waits

_HEADERS = [
    (b"content-type", EVENT_STREAM + b"; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Without this header, nginx would buffer the events.
    (b"x-accel-buffering", b"no"),
]


class EventStream:
    """Sends `events`, and takes the next event only when the client has received the previous one.

    The response begins with the first event, so a request that fails before that gets its own
    status. `error` writes the last event of a stream that fails later; if it is None, the API's
    ErrorForm does.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        error: Callable[[ServingError], bytes] | None = None,
    ) -> None:
        self._events = events
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False
        if self._error is not None:
            scope[STREAM_ERROR] = self._error
        async with while_client_waits(receive), aclosing(self._events):
            async for event in self._events:
                if not has_begun:
                    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                    has_begun = True
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
