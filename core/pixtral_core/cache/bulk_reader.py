"""Reads large values from Redis in threads, straight into their final buffer.

asyncio's streams and redis-py's parser copy a value of 8 MB four times, each time into new memory.
Here redis-py opens the connections as the URL says, and this module reads the replies itself.

This module reads a value in pieces: Redis copies a whole reply before it sends it, and executes no
other command meanwhile. While one piece is on its way, this module requests the next one and
processes the previous one.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from socket import socket
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from pixtral_core.cache.receiving import PIECE_BYTES, Receiver
from pixtral_core.cache.redis_socket import Connection, Pool, pool_of, send, socket_of

T = TypeVar("T")

# The largest value that Redis stores.
MAX_BYTES = 512 << 20
# Enough for one line of a reply. Usually a part of the value after that line comes with it.
LINE_BYTES = 64


class ValueReader:
    """Reads at most `max_connections` values at once, each over a connection of its own."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._is_closed = False
        self._threads = ThreadPoolExecutor(pool.max_connections, thread_name_prefix="redis")

    @classmethod
    def from_url(cls, url: str, *, max_connections: int) -> "ValueReader":
        """Connects on first use.

        Raises ValueError for a malformed URL, and HookBroken if redis-py has changed.
        """
        return cls(pool_of(url, max_connections=max_connections))

    async def get(self, key: str, seconds: float, receiver: Receiver[T]) -> T | None:
        """Returns what `receiver` makes of the value, in a thread. None if the value is missing or
        empty. If a writer replaces the value during the read, the result may mix parts of both
        values.

        If the caller is cancelled, the thread continues for at most `seconds`, and drops the
        result.

        Raises TimeoutError, OSError, redis-py's errors and what `receiver` raises.
        """
        until = time.monotonic() + seconds

        def get() -> T | None:
            value = self._get(key, until, receiver)
            return None if value is None else receiver.end(value)

        return await asyncio.get_running_loop().run_in_executor(self._threads, get)

    def close(self) -> None:
        """Ends the reads that run."""
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pool.disconnect()

    def _get(self, key: str, until: float, receiver: Receiver[Any]) -> memoryview | None:
        try:
            return self._get_once(key, until, receiver)
        except (RedisConnectionError, ConnectionError):
            if self._is_closed:
                raise
            # The connection may have ended while it was idle in the pool, which says nothing about
            # Redis now.
            return self._get_once(key, until, receiver)

    def _get_once(self, key: str, until: float, receiver: Receiver[Any]) -> memoryview | None:
        connection = self._pool.get_connection()
        try:
            return _value(connection, key, until, receiver)
        except BaseException:
            # The next command on this connection would get the rest of the reply.
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)


def _value(
    connection: Connection, key: str, until: float, receiver: Receiver[Any]
) -> memoryview | None:
    replies = _Replies(connection, until)
    replies.ask(("STRLEN", key), ("GETRANGE", key, 0, PIECE_BYTES - 1))
    size = replies.number(b":")
    if size > MAX_BYTES:
        raise RedisConnectionError("too large")
    # Each piece is followed by CRLF.
    memory = receiver.memory(size + 2) if size else memoryview(bytearray(2))
    for begin in range(0, max(size, 1), PIECE_BYTES):
        end = min(begin + PIECE_BYTES, size)
        if end < size:
            replies.ask(("GETRANGE", key, end, end + PIECE_BYTES - 1))
        if replies.number(b"$") != end - begin:
            raise RedisConnectionError("the value has changed")
        replies.into(memory[begin : end + 2])
        if size:
            receiver.piece(memory[begin:end])
    return memory[:size] if size else None


class _Replies:
    """Reads the replies of one connection, until the deadline."""

    def __init__(self, connection: Connection, until: float) -> None:
        self._connection = connection
        self._until = until
        self._begun = b""

    def ask(self, *commands: tuple[str | int, ...]) -> None:
        self._socket()
        send(self._connection, *commands)

    def number(self, kind: bytes) -> int:
        """The number in the next line, which must begin with `kind`."""
        while b"\r\n" not in self._begun:
            piece = self._socket().recv(LINE_BYTES)
            self._begun += piece
            if not piece or len(self._begun) > 2 * LINE_BYTES:
                raise RedisConnectionError("no reply")
        line, _, self._begun = self._begun.partition(b"\r\n")
        if line.startswith(b"-"):
            raise ResponseError("refused")
        if line[:1] != kind or not line[1:].isdigit():
            raise RedisConnectionError("no reply")
        return int(line[1:])

    def into(self, memory: memoryview) -> None:
        begun, self._begun = self._begun[: len(memory)], self._begun[len(memory) :]
        memory[: len(begun)] = begun
        left = memory[len(begun) :]
        while left:
            count = self._socket().recv_into(left)
            if not count:
                raise RedisConnectionError("the connection has ended within a value")
            left = left[count:]

    def _socket(self) -> socket:
        """The connection's socket, which waits no longer than the deadline."""
        left, sock = self._until - time.monotonic(), socket_of(self._connection)
        if left <= 0:
            raise RedisTimeoutError("too late")
        if sock is None:
            raise RedisConnectionError("the connection has closed")
        sock.settimeout(left)
        return sock
