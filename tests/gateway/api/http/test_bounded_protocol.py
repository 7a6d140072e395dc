"""Bounds on what is no body; `test_serving.py` tries them on a served connection."""

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from pixtral_gateway.api.http import bounded_protocol
from pixtral_gateway.api.http.bounded_protocol import MAX_HEAD_BYTES, BoundedProtocol
from tests.support.upstream import assert_still_there


class Transport(asyncio.Transport):
    """A connection that notes what happens to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.is_closed

    def get_protocol(self) -> asyncio.BaseProtocol:
        return asyncio.BaseProtocol()


async def _app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("the request's head never ends")


def send_a_head_without_end(kind: type[HttpToolsProtocol]) -> tuple[bool, bytes]:
    """Whether the server closes the connection, and what it writes."""
    config = uvicorn.Config(_app, loop="none", ws="none", lifespan="off", log_config=None)
    config.load()
    protocol = kind(config=config, server_state=ServerState(), app_state={})
    transport = Transport()
    protocol.connection_made(transport)
    protocol.data_received(b"GET / HTTP/1.1\r\nX: ")
    for _ in range(2 + MAX_HEAD_BYTES // 1024):
        protocol.data_received(b"a" * 1024)
    seen = transport.is_closed, transport.written
    protocol.connection_lost(None)
    return seen


def test_still_there() -> None:
    assert_still_there(bounded_protocol)


async def test_still_needed_while_uvicorn_reads_a_head_without_end() -> None:
    """Once this fails, uvicorn has a bound of its own: see what of `bounded_protocol` can go."""
    assert send_a_head_without_end(HttpToolsProtocol) == (False, b"")


async def test_a_head_without_end_is_refused() -> None:
    is_closed, written = send_a_head_without_end(BoundedProtocol)
    assert is_closed
    assert written.startswith(b"HTTP/1.1 400 ")
