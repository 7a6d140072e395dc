"""Large values out of Redis, received by threads where they stay.

On its way through asyncio's streams and redis-py's parser a value of 8 MB is copied four times,
each time into memory that is new. Here the connections are redis-py's, with all that an address
says of them, and the reply alone is read past it.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from redis import connection
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from embeddings.receiving import Receiver

# Partly without types.
_connection: Any = connection

T = TypeVar("T")

# What no value of Redis is larger than.
MAX_BYTES = 512 << 20
# In which the line before a value is, most often with a bit of the value.
FIRST_BYTES = 4096


class ValueReader:
    """Reads as many values at once as there may be connections."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._threads = ThreadPoolExecutor(pool.max_connections, thread_name_prefix="redis")

    @classmethod
    def from_url(cls, url: str, *, max_connections: int) -> "ValueReader":
        """Connects on first use. Raises ValueError for a malformed URL."""
        settings: dict[str, Any] = {
            "max_connections": max_connections,
            "timeout": None,
            "socket_connect_timeout": 0.25,
            "socket_timeout": 1.0,
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
            **_connection.parse_url(url),
            # Of the newer one, other messages could be among the replies.
            "protocol": 2,
        }
        return cls(_connection.BlockingConnectionPool(**settings))

    async def get(self, key: str, seconds: float, receiver: Receiver[T]) -> T | None:
        """What `receiver` makes of the value, in a thread, or None where there is none.

        A thread whose caller was cancelled goes on, reads for `seconds` at most, and drops what
        has been made.

        Raises TimeoutError, OSError, redis-py's errors and what `receiver` raises.
        """
        until = time.monotonic() + seconds

        def get() -> T | None:
            value = self._get(key, until, receiver)
            return None if value is None else receiver.end(value)

        return await asyncio.get_running_loop().run_in_executor(self._threads, get)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pool.disconnect()

    def _get(self, key: str, until: float, receiver: Receiver[Any]) -> memoryview | None:
        try:
            return self._get_once(key, until, receiver)
        except (RedisConnectionError, ConnectionError):
            # It may have ended while it lay idle in the pool, which says nothing of Redis now.
            return self._get_once(key, until, receiver)

    def _get_once(self, key: str, until: float, receiver: Receiver[Any]) -> memoryview | None:
        connection: Any = self._pool.get_connection()
        try:
            return _value(connection, key, until, receiver)
        except BaseException:
            # What may still come of the reply is for nobody else.
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)


def _value(connection: Any, key: str, until: float, receiver: Receiver[Any]) -> memoryview | None:
    _within(until, connection)
    connection.send_command("GET", key)
    received = b""
    while b"\r\n" not in received:
        piece = _within(until, connection).recv(FIRST_BYTES)
        received += piece
        if not piece or len(received) > 2 * FIRST_BYTES:
            raise RedisConnectionError("no reply")
    line, _, begun = received.partition(b"\r\n")
    if line == b"$-1":
        return None
    if line.startswith(b"-"):
        raise ResponseError("refused")
    size = int(line[1:]) if line[:1] == b"$" and line[1:].isdigit() else MAX_BYTES + 1
    # A line's end is behind the value.
    whole = size + 2
    if size > MAX_BYTES or len(begun) > whole:
        raise RedisConnectionError("no reply")
    memory = receiver.memory(whole)
    memory[: len(begun)] = begun
    left = memory[len(begun) :]
    while left:
        count = _within(until, connection).recv_into(left)
        if not count:
            raise RedisConnectionError("ended within a value")
        left = left[count:]
    return memory[:size]


def _within(until: float, connection: Any) -> Any:
    """The connection's socket, which waits no longer than that."""
    left, sock = until - time.monotonic(), connection._sock
    if left <= 0:
        raise RedisTimeoutError("too late")
    if sock is None:
        raise RedisConnectionError("closed meanwhile")
    sock.settimeout(left)
    return sock
