"""Bounds on HTTP heads and trailers, which uvicorn leaves to a proxy.

Library: uvicorn
Changes: a class that derives from HttpToolsProtocol closes a connection whose client sends a head,
    chunk headers or trailers without end or too slowly.
Why: uvicorn leaves these bounds to a proxy. It has a bound on heads only with its other parser,
    h11.
Upstream: https://github.com/Kludex/uvicorn/issues/157
Versions: uvicorn 0.50 to 0.54
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pixtral_core import limits
from pixtral_core.hooks import Touch, check_touches

_MODULE = "uvicorn.protocols.http.httptools_impl"
TOUCHES = (
    Touch(_MODULE, "HttpToolsProtocol.__init__", mentions=("cycle", "transport", "loop")),
    Touch(_MODULE, "HttpToolsProtocol.connection_made", parameters=("transport",)),
    Touch(_MODULE, "HttpToolsProtocol.connection_lost", parameters=("exc",)),
    Touch(_MODULE, "HttpToolsProtocol.data_received", parameters=("data",)),
    Touch(_MODULE, "HttpToolsProtocol.send_400_response", parameters=("msg",)),
    Touch(_MODULE, "HttpToolsProtocol.on_message_begin"),
    Touch(_MODULE, "HttpToolsProtocol.on_headers_complete"),
    Touch(_MODULE, "HttpToolsProtocol.on_body", parameters=("body",)),
    Touch(_MODULE, "HttpToolsProtocol.on_message_complete", mentions=("cycle",)),
    Touch(_MODULE, "HttpToolsProtocol.on_response_complete"),
    Touch(_MODULE, "RequestResponseCycle.__init__", mentions=("response_complete",)),
)

# The most bytes of a request's head, of the line before a piece of its body, and of its trailers.
MAX_HEAD_BYTES = limits.HEAD_BYTES.most
# The time for the head, and for the rest of a body after its request was answered.
HEAD_SECONDS = 60.0


def check_upstream() -> None:
    """Raises HookBroken if uvicorn has changed."""
    check_touches(__name__, TOUCHES)


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose client sends more than these bounds, or more slowly."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # `_head_bytes` counts the bytes since the parser last completed a head, a piece of a body
        # or a message. `_patience` limits the time for the next one.
        self._head_bytes = 0
        self._has_moved_on = False
        self._is_whole = True
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._has_moved_on = False
        super().data_received(data)
        self._head_bytes = 0 if self._has_moved_on else self._head_bytes + len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's head is too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_whole = False
        self._wait()

    def on_headers_complete(self) -> None:
        self._has_moved_on = True
        self._wait_no_more()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_moved_on = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_moved_on = self._is_whole = True
        super().on_message_complete()
        if self.cycle.response_complete:
            # The body ended after the answer, so uvicorn itself does not limit the wait for another
            # request.
            self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Nothing reads the rest of the body, so it has no other deadline.
        if self.cycle is not None and self.cycle.response_complete and not self._is_whole:
            self._wait()

    def _wait(self) -> None:
        self._wait_no_more()
        self._patience = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
