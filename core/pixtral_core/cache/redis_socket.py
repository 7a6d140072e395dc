"""Exposes the socket of a redis-py connection, and sends commands on it.

Library: redis
Changes: nothing; redis-py makes its connections from the URL, and the hook reads their sockets
    without redis-py's parser.
Why: asyncio's streams and redis-py's parser copy a value of 8 MB four times, each time into new
    memory. redis-py cannot write a reply into given memory.
Upstream: https://github.com/redis/redis-py/issues/725
Versions: redis 6.2 to 8.1
"""

import socket
from typing import Any, Protocol

from redis import connection
from redis.backoff import NoBackoff
from redis.retry import Retry

from pixtral_core.hooks import Touch, check_touches

_CONNECTION = "redis.connection"
TOUCHES = (
    Touch(_CONNECTION, "parse_url", parameters=("url",)),
    Touch(
        _CONNECTION, "BlockingConnectionPool.__init__", parameters=("max_connections", "timeout")
    ),
    Touch(_CONNECTION, "BlockingConnectionPool.get_connection"),
    Touch(_CONNECTION, "BlockingConnectionPool.release"),
    Touch(_CONNECTION, "BlockingConnectionPool.disconnect"),
    Touch(_CONNECTION, "AbstractConnection.connect_check_health", mentions=("_sock",)),
    Touch(_CONNECTION, "AbstractConnection.disconnect", mentions=("_sock",)),
    Touch(_CONNECTION, "AbstractConnection.pack_commands", parameters=("commands",)),
    Touch(_CONNECTION, "AbstractConnection.send_packed_command", mentions=("_sock",)),
)

# Some parts of this module have no types.
_connection: Any = connection


class Connection(Protocol):
    """The part of redis-py's AbstractConnection that this hook touches."""

    _sock: socket.socket | None

    def pack_commands(self, commands: Any) -> Any: ...

    def send_packed_command(self, command: Any) -> None: ...

    def disconnect(self) -> None: ...


class Pool(Protocol):
    """The part of redis-py's BlockingConnectionPool that this hook touches."""

    max_connections: int

    def get_connection(self) -> Connection: ...

    def release(self, connection: Connection) -> None: ...

    def disconnect(self) -> None: ...


def check_upstream() -> None:
    """Raises HookBroken if redis-py has changed."""
    check_touches(__name__, TOUCHES)


def pool_of(url: str, *, max_connections: int) -> Pool:
    """A pool that opens a connection when one is needed.

    Raises ValueError for a malformed URL. Raises HookBroken if redis-py has changed: the process
    then does not start. Without this check, each request with an image would fail with an
    AttributeError.
    """
    check_upstream()
    settings: dict[str, Any] = {
        "max_connections": max_connections,
        "timeout": None,
        "socket_connect_timeout": 0.25,
        "socket_timeout": 1.0,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        **_connection.parse_url(url),
        # Version 3 of the protocol could send other messages between the replies.
        "protocol": 2,
    }
    pool: Pool = _connection.BlockingConnectionPool(**settings)
    return pool


def send(connection: Connection, *commands: tuple[str | int, ...]) -> None:
    """Sends commands at once. Raises redis-py's errors."""
    connection.send_packed_command(connection.pack_commands(commands))


def socket_of(connection: Connection) -> socket.socket | None:
    """The connection's socket; None if the connection is closed."""
    return connection._sock
