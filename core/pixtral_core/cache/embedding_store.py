"""Image embeddings in Redis; a fault of Redis counts as a miss."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TypeVar

from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.cache.guarded_redis import FAILURES, GuardedRedis, show_from_the_start
from pixtral_core.cache.receiving import Arrival, Receiving
from pixtral_core.cache.wire_format import DamagedValue, DType

show_from_the_start("get", "put", "exist", "delete", "ping")
FAILURES.labels("get", "damaged")

T = TypeVar("T")


class EmbeddingStore:
    """Reads and writes embeddings of one width and dtype.

    Every operation ends within its timeout, and a fault of Redis counts as a miss.
    """

    def __init__(
        self,
        redis: GuardedRedis,
        *,
        width: int,
        dtype: DType,
        lookup_seconds: float = 0.25,
        transfer_seconds: float = 1.0,
    ) -> None:
        self._redis = redis
        self._width = width
        self._dtype = dtype
        self._lookup_seconds = lookup_seconds
        self._transfer_seconds = transfer_seconds

    @classmethod
    def from_url(
        cls, url: str, *, width: int, dtype: DType, max_connections: int = 16
    ) -> "EmbeddingStore":
        """Takes the same URLs and raises the same errors as `GuardedRedis.from_url`."""
        redis = GuardedRedis.from_url(url, max_connections=max_connections)
        return cls(redis, width=width, dtype=dtype)

    async def check(self) -> bool:
        """Whether Redis answers. Logs a warning if it does not."""
        return await self._redis.check()

    async def get(self, key: EmbeddingKey, arrival: Arrival[T]) -> T | None:
        """Returns what `arrival` makes of the embedding, in a thread. None means a miss. A value
        that fails its checks is a miss, and is deleted."""
        seconds = self._transfer_seconds
        receiving = Receiving(key, arrival, width=self._width, dtype=self._dtype)

        async def read() -> T | None:
            return await self._redis.values.get(key.redis_key, seconds, receiving)

        # Reads twice, because another encoder may replace the value during the first read.
        for _ in range(2):
            with suppress(DamagedValue):
                return await self._redis.attempt("get", seconds, read)
        FAILURES.labels("get", "damaged").inc()
        await self._redis.attempt(
            "delete", self._lookup_seconds, lambda: self._redis.client.delete(key.redis_key)
        )
        return None

    async def put(self, key: EmbeddingKey, value: bytes) -> bool:
        """Stores a value that `wire_format.encode` made for this key; True once Redis has it."""
        stored = await self._redis.attempt(
            "put", self._transfer_seconds, lambda: self._redis.client.set(key.redis_key, value)
        )
        return bool(stored)

    async def exist(self, keys: Sequence[EmbeddingKey]) -> list[bool]:
        """For each key, whether Redis has a value. One round trip for all keys."""
        if not keys:
            return []
        client = self._redis.client

        async def lookup() -> list[int]:
            if len(keys) == 1:
                # A pipeline of one command costs more than the command.
                return [await client.exists(keys[0].redis_key)]
            async with client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.exists(key.redis_key)
                return await pipeline.execute()

        found = await self._redis.attempt("exist", self._lookup_seconds, lookup)
        return [False] * len(keys) if found is None else [bool(n) for n in found]

    async def close(self) -> None:
        await self._redis.close()
