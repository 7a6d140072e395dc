"""The part of HTTP/2 that sends gRPC calls which no client library would send."""

import asyncio
import socket
import struct
import time
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
INITIAL_WINDOW_SIZE = 0x4
# The initial window of a connection and of a stream, and the largest frame.
WINDOW = 65_535
FRAME = 16_384
_NAMES = {RST_STREAM: "RST_STREAM", GOAWAY: "GOAWAY"}


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    length = struct.pack(">I", len(payload))[1:]
    return length + struct.pack(">BBI", kind, flags, stream) + payload


def headers(fields: Sequence[tuple[str, str]]) -> bytes:
    """A block of literal fields, without a table and without Huffman codes."""
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
    """The headers of a gRPC call; `method` is package.Service/Method."""
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
    """Sends frames, acknowledges the server's settings and pings, and counts its other frames."""

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
        """Reads until the server closes the connection."""
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


class Http2Sender:
    """A connection with one call, which sends as much of a message as the test wants."""

    def __init__(self, address: str, path: str, *headers: tuple[str, str]) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=30)
        self._received = b""
        self._window, self._stream_window, self._initial = WINDOW, WINDOW, WINDOW
        self.answer = b""
        self.has_ended = False
        block = call_headers(path.removeprefix("/"), "test", *headers)
        self._socket.sendall(PREFACE + frame(SETTINGS) + frame(HEADERS, END_HEADERS, 1, block))

    def send(
        self, nbytes: int, declared: int | None = None, *, begin: bytes = b"", seconds: float = 20
    ) -> int:
        """Sends a message's header and `nbytes` of its content.

        The content starts with `begin`. The header declares `declared` bytes, or `nbytes` if not
        given. Returns how many bytes of the content were sent: fewer than `nbytes` if the call
        ends or `seconds` pass.
        """
        header = struct.pack(">BI", False, nbytes if declared is None else declared)
        left = memoryview(header + begin + bytes(nbytes - len(begin)))
        deadline = time.monotonic() + seconds
        while left and not self.has_ended and time.monotonic() < deadline:
            size = min(FRAME, self._window, self._stream_window, len(left))
            if size > 0:
                self._socket.sendall(frame(DATA, 0, 1, bytes(left[:size])))
                left = left[size:]
                self._window -= size
                self._stream_window -= size
            self.read(0.0 if size > 0 else 0.05)
        return nbytes - len(left)

    def end(self) -> None:
        """Ends the client's side of the stream."""
        self._socket.sendall(frame(DATA, END_STREAM, 1))

    def wait(self, seconds: float = 20) -> bytes:
        """The server's answer when the call ends: headers and trailers, not decoded."""
        deadline = time.monotonic() + seconds
        while not self.has_ended and time.monotonic() < deadline:
            self.read(0.05)
        return self.answer

    def read(self, seconds: float) -> None:
        self._socket.settimeout(max(seconds, 1e-6))
        try:
            self._received += self._socket.recv(1 << 20)
        except (TimeoutError, BlockingIOError):
            pass
        except ConnectionError:
            self.has_ended = True
        self._socket.settimeout(30)
        while len(self._received) >= 9:
            size = int.from_bytes(self._received[:3], "big")
            if len(self._received) < 9 + size:
                return
            kind, flags = self._received[3:5]
            stream = int.from_bytes(self._received[5:9], "big")
            self._take(kind, flags, stream, self._received[9 : 9 + size])
            self._received = self._received[9 + size :]

    def close(self) -> None:
        self._socket.close()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack_from(">HI", payload, at)
                if name == INITIAL_WINDOW_SIZE:
                    self._stream_window += value - self._initial
                    self._initial = value
            self._socket.sendall(frame(SETTINGS, ACK))
        elif kind == PING and not flags & ACK:
            self._socket.sendall(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream:
            self._stream_window += int.from_bytes(payload, "big")
        elif kind == WINDOW_UPDATE:
            self._window += int.from_bytes(payload, "big")
        elif kind == HEADERS:
            self.answer += payload
            self.has_ended = self.has_ended or bool(flags & END_STREAM)
        elif kind in (RST_STREAM, GOAWAY):
            self.has_ended = True
