"""Image embeddings in Redis. Redis is a cache here: no fault of it is ever an error."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, cast

from prometheus_client import Counter, Histogram
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from embeddings import codec
from embeddings.codec import DamagedValue, DType, Embedding
from embeddings.key import EmbeddingKey

T = TypeVar("T")

FAILURES = Counter(
    "pixtral_embedding_store_failures_total",
    "Operations on Redis that failed and were taken as a miss",
    ["operation", "reason"],
)
SECONDS = Histogram(
    "pixtral_embedding_store_seconds",
    "Time of an operation on Redis, failed ones too",
    ["operation"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)

# Shown from the start: no rate sees a counter that begins at one.
for operation in ("get", "put", "exist", "delete"):
    for reason in ("timeout", "connection", "refused", "paused"):
        FAILURES.labels(operation, reason)
FAILURES.labels("get", "damaged")

# redis-py reads 64 KiB at a time unless told; an 8 MiB value reads a quarter faster so.
READ_SIZE = 1 << 20
# Checksums of values above this are taken off the event loop.
OFFLOAD_BYTES = 256 << 10


class EmbeddingStore:
    """Reads and writes embeddings of one width and dtype.

    Every operation ends within its timeout, and a fault of Redis reads as a miss. After a fault
    of the connection, Redis is left alone for `pause_seconds`, so that a Redis that hangs costs
    one timeout a pause and not one a request.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        width: int,
        dtype: DType,
        lookup_seconds: float = 0.25,
        transfer_seconds: float = 1.0,
        pause_seconds: float = 1.0,
    ) -> None:
        self._redis = redis
        self._width = width
        self._dtype = dtype
        self._lookup_seconds = lookup_seconds
        self._transfer_seconds = transfer_seconds
        self._pause_seconds = pause_seconds
        self._paused_until = 0.0

    @classmethod
    def from_url(
        cls, url: str, *, width: int, dtype: DType, max_connections: int = 16
    ) -> "EmbeddingStore":
        """`url` as redis-py takes it: redis://, rediss:// or unix://, with the password.

        Connects on first use. Raises ValueError for a malformed URL.
        """
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=None,
            socket_connect_timeout=0.25,
            socket_read_size=READ_SIZE,
            # At once and once: a connection may have ended while it lay idle in the pool, after a
            # restart of Redis every one of them, and says nothing of Redis now.
            retry=Retry(NoBackoff(), 1),
            health_check_interval=0,
        )
        return cls(Redis(connection_pool=pool), width=width, dtype=dtype)

    async def get(self, key: EmbeddingKey) -> Embedding | None:
        """The embedding, or None. A value that fails its checks is deleted."""
        value = await self._attempt("get", self._transfer_seconds, lambda: self._read(key))
        if value is None:
            return None
        try:
            if len(value) > OFFLOAD_BYTES:
                return await asyncio.to_thread(self._decode, key, value)
            return self._decode(key, value)
        except DamagedValue:
            FAILURES.labels("get", "damaged").inc()
            await self._attempt(
                "delete", self._lookup_seconds, lambda: self._redis.delete(key.redis_key)
            )
            return None

    async def put(self, key: EmbeddingKey, value: bytes) -> bool:
        """Stores a value made by `codec.encode` for this key; True once Redis has it."""
        stored = await self._attempt(
            "put", self._transfer_seconds, lambda: self._redis.set(key.redis_key, value)
        )
        return bool(stored)

    async def exist(self, keys: Sequence[EmbeddingKey]) -> list[bool]:
        """Which of the keys Redis holds a value for, in one round trip."""
        if not keys:
            return []

        async def lookup() -> list[int]:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.exists(key.redis_key)
                return await pipeline.execute()

        found = await self._attempt("exist", self._lookup_seconds, lookup)
        return [False] * len(keys) if found is None else [bool(n) for n in found]

    async def close(self) -> None:
        await self._redis.aclose(close_connection_pool=True)

    async def _read(self, key: EmbeddingKey) -> bytes | None:
        # The pool decodes no responses; redis-py's types cannot know.
        return cast("bytes | None", await self._redis.get(key.redis_key))

    def _decode(self, key: EmbeddingKey, value: bytes) -> Embedding:
        return codec.decode(key, value, width=self._width, dtype=self._dtype)

    async def _attempt(
        self, operation: str, seconds: float, call: Callable[[], Awaitable[T]]
    ) -> T | None:
        started = time.monotonic()
        if started < self._paused_until:
            FAILURES.labels(operation, "paused").inc()
            return None
        try:
            async with asyncio.timeout(seconds):
                return await call()
        except TimeoutError:
            self._failed(operation, "timeout")
        except (ConnectionError, RedisError, OSError) as error:
            self._failed(operation, _reason(error))
        finally:
            SECONDS.labels(operation).observe(time.monotonic() - started)
        return None

    def _failed(self, operation: str, reason: str) -> None:
        FAILURES.labels(operation, reason).inc()
        if reason != "refused":
            self._paused_until = time.monotonic() + self._pause_seconds


def _reason(error: Exception) -> str:
    # redis-py's own ConnectionError and TimeoutError are RedisErrors, and not the built-in ones.
    name = type(error).__name__
    if "Timeout" in name:
        return "timeout"
    if isinstance(error, OSError) or "Connection" in name or "Busy" in name:
        return "connection"
    return "refused"
