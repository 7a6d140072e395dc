"""As much of HTTP/2 as it takes to send what no client library would."""

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0x0,
    0x1,
    0x3,
    0x4,
    0x6,
    0x7,
    0x8,
    0x9,
)
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
_NAMES = {RST_STREAM: "RST_STREAM", GOAWAY: "GOAWAY"}


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    length = struct.pack(">I", len(payload))[1:]
    return length + struct.pack(">BBI", kind, flags, stream) + payload


def headers(fields: Sequence[tuple[str, str]]) -> bytes:
    """A block of literals that need neither a table nor Huffman's code."""
    block = bytearray()
    for name, value in fields:
        block.append(0)
        for text in (name, value):
            raw = text.encode()
            block += _integer(len(raw), 7) + raw
    return bytes(block)


def _integer(value: int, bits: int) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes([value])
    out, value = bytearray([most]), value - most
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def call_headers(method: str, authority: str, *more: tuple[str, str]) -> bytes:
    """Those of a call of gRPC: package.Service/Method."""
    return headers(
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", f"/{method}"),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *more,
        ]
    )


def grpc_message(message: bytes, *, is_compressed: bool = False) -> bytes:
    return struct.pack(">BI", is_compressed, len(message)) + message


class Connection:
    """Sends frames; answers what the server needs answered, and counts what it says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._next = 1
        self.seen = Counter[str]()
        self.is_closed = False

    def stream(self) -> int:
        """The number of a new stream."""
        number, self._next = self._next, self._next + 2
        return number

    async def send(self, *frames: bytes) -> None:
        self._writer.write(b"".join(frames))
        await self._writer.drain()

    async def follow(self) -> None:
        """Reads until the server has closed."""
        try:
            while True:
                head = await self._reader.readexactly(9)
                length = int.from_bytes(head[:3], "big")
                payload = await self._reader.readexactly(length)
                kind, flags = head[3], head[4]
                if kind in _NAMES:
                    self.seen[_NAMES[kind]] += 1
                if kind == HEADERS and flags & END_STREAM:
                    self.seen["ended"] += 1
                if kind == SETTINGS and not flags & ACK:
                    self._writer.write(frame(SETTINGS, ACK, 0))
                if kind == PING and not flags & ACK:
                    self._writer.write(frame(PING, ACK, 0, payload))
        except (asyncio.IncompleteReadError, OSError):
            self.is_closed = True


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[Connection]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    connection = Connection(reader, writer)
    following = asyncio.create_task(connection.follow())
    try:
        await connection.send(PREFACE, frame(SETTINGS, 0, 0))
        yield connection
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
        writer.transport.abort()
