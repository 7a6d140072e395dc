"""Sends a call of gRPC frame by frame, as no client library would."""

import socket
import struct
import time

WINDOW = 65_535
FRAME = 16_384
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8


class Http2Sender:
    """One connection with one call, of which a message is sent as far as the test wants."""

    def __init__(self, address: str, path: str, *headers: tuple[str, str]) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=30)
        self._received = b""
        self._window, self._stream_window, self._initial = WINDOW, WINDOW, WINDOW
        self.answer = b""
        self.has_ended = False
        pairs = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "test"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *headers,
        )
        block = b"".join(
            _literal(text) if i else b"\0" + _literal(text)
            for pair in pairs
            for i, text in enumerate(pair)
        )
        self._socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS) + _frame(HEADERS, 4, 1, block)
        )

    def send(
        self, nbytes: int, declared: int | None = None, *, begin: bytes = b"", seconds: float = 20
    ) -> int:
        """A message that begins so, and so many bytes in all, of as many as are declared; fewer
        where the call has ended before. Returns how many were sent."""
        header = struct.pack(">BI", 0, nbytes if declared is None else declared)
        left = memoryview(header + begin + bytes(nbytes - len(begin)))
        deadline = time.monotonic() + seconds
        while left and not self.has_ended and time.monotonic() < deadline:
            size = min(FRAME, self._window, self._stream_window, len(left))
            if size > 0:
                self._socket.sendall(_frame(DATA, 0, 1, bytes(left[:size])))
                left = left[size:]
                self._window -= size
                self._stream_window -= size
            self.read(0.0 if size > 0 else 0.05)
        return nbytes - len(left)

    def end(self) -> None:
        """Says that no message comes any more."""
        self._socket.sendall(_frame(DATA, 1, 1))

    def wait(self, seconds: float = 20) -> bytes:
        """What the server says at the call's end, headers and trailers as they are."""
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
        match kind:
            case 4 if not flags & 1:
                for at in range(0, len(payload), 6):
                    name, value = struct.unpack_from(">HI", payload, at)
                    if name == 4:
                        self._stream_window += value - self._initial
                        self._initial = value
                self._socket.sendall(_frame(SETTINGS, 1))
            case 6 if not flags & 1:
                self._socket.sendall(_frame(PING, 1, 0, payload))
            case 8 if stream:
                self._stream_window += int.from_bytes(payload, "big")
            case 8:
                self._window += int.from_bytes(payload, "big")
            case 1:
                self.answer += payload
                self.has_ended = self.has_ended or bool(flags & 1)
            case 3 | 7:
                self.has_ended = True


def _frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(text: str) -> bytes:
    """A text of a header block, without Huffman's code; behind a zero byte it begins a header."""
    data = text.encode()
    assert len(data) < 127
    return bytes((len(data),)) + data
