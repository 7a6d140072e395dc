"""A Redis client whose operations end in time; an operation that fails returns None."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from prometheus_client import Counter, Histogram
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from pixtral_core.cache.bulk_reader import ValueReader
from pixtral_core.cache.redis_state import RedisState

T = TypeVar("T")

FAILURES = Counter(
    "pixtral_embedding_store_failures_total",
    "Redis operations that failed and counted as a miss",
    ["operation", "reason"],
)
SECONDS = Histogram(
    "pixtral_embedding_store_seconds",
    "Time of a Redis operation, including failed ones",
    ["operation"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)

# Errors that mean that a connection has ended. uvloop raises a plain RuntimeError for a write to a
# connection that was reset, and redis-py handles asyncio's errors alone.
ENDED: tuple[Any, ...] = (RedisConnectionError, RedisTimeoutError, RuntimeError)

CHECK_SECONDS = 1.0

# redis-py reads 64 KiB at a time by default. Larger reads are faster for a value of 8 MiB.
READ_SIZE = 1 << 20


def show_from_the_start(*operations: str) -> None:
    """Shows each failure counter at zero, because a rate misses the event that creates a
    counter."""
    for operation in operations:
        for reason in ("timeout", "connection", "refused", "paused"):
            FAILURES.labels(operation, reason)


class GuardedRedis:
    """A connection pool whose operations end within their time, with a result or with None.

    After a fault of the connection, the pool does not use Redis for `pause_seconds`, so that a
    Redis that hangs costs one timeout for each pause and not for each request.

    Attributes:
        client: the client for operations that callers pass to `attempt`.
        values: the reader of large values for such operations.
        state: the state of the Redis, which all of the process's connections to it share.
    """

    def __init__(
        self,
        client: Redis,
        values: ValueReader,
        *,
        pause_seconds: float = 1.0,
        state: RedisState | None = None,
    ) -> None:
        self.client = client
        self.values = values
        self.state = state or RedisState()
        self._pause_seconds = pause_seconds
        self._paused_until = 0.0

    @classmethod
    def from_url(
        cls, url: str, *, max_connections: int = 16, state: RedisState | None = None
    ) -> "GuardedRedis":
        """`url` is one that redis-py takes: redis://, rediss:// or unix://, with the password.

        Connects on first use. Raises ValueError for a malformed URL.
        """
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=None,
            socket_connect_timeout=0.25,
            socket_read_size=READ_SIZE,
            # One retry, without a pause: a connection may have ended while it was idle in the pool.
            # After a restart of Redis all connections have ended, and Redis may still answer on new
            # ones.
            retry=Retry(NoBackoff(), 1, ENDED),
            health_check_interval=0,
        )
        return cls(
            Redis(connection_pool=pool),
            ValueReader.from_url(url, max_connections=max_connections),
            state=state,
        )

    async def check(self) -> bool:
        """Whether Redis answers. A process checks this at its start, and so logs a missing Redis at
        once."""
        return bool(await self.attempt("ping", CHECK_SECONDS, self.client.ping))

    async def close(self) -> None:
        self.values.close()
        await self.client.aclose(close_connection_pool=True)

    async def attempt(
        self, operation: str, seconds: float, call: Callable[[], Awaitable[T]]
    ) -> T | None:
        started = time.monotonic()
        if started < self._paused_until:
            FAILURES.labels(operation, "paused").inc()
            return None
        try:
            async with asyncio.timeout(seconds):
                result = await call()
            self.state.answered(operation)
            return result
        except TimeoutError as error:
            self._failed(operation, "timeout", error)
        except (ConnectionError, RedisError, OSError) as error:
            self._failed(operation, _reason(error), error)
        except RuntimeError as error:
            if type(error) is not RuntimeError:
                raise
            self._failed(operation, "connection", error)
        finally:
            SECONDS.labels(operation).observe(time.monotonic() - started)
        return None

    def _failed(self, operation: str, reason: str, error: Exception) -> None:
        FAILURES.labels(operation, reason).inc()
        if reason == "refused":
            self.state.refused(operation, type(error).__name__)
        else:
            self._paused_until = time.monotonic() + self._pause_seconds
            self.state.does_not_answer(reason)


def _reason(error: Exception) -> str:
    # redis-py's ConnectionError and TimeoutError derive from RedisError, and not from the built-in
    # errors of these names.
    name = type(error).__name__
    if "Timeout" in name:
        return "timeout"
    if isinstance(error, OSError) or "Connection" in name or "Busy" in name:
        return "connection"
    return "refused"
