"""Sizes and files of images in Redis, by tenant, so that requests can name them.

When an image comes with a request, the gateway stores a record of its size: the prompt needs only
the size, and Redis has the embedding while there is room for it. When an image is uploaded, the
gateway stores the file as well, because no embedding of it may exist yet. A client must send an
image again if the gateway does not have it.
"""

import asyncio
import hashlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.cache.guarded_redis import FAILURES, GuardedRedis, show_from_the_start

# Redis keeps records and files for this long after the image was last named, uploaded or sent.
KEEP_SECONDS: Final = 3600
LOOKUP_SECONDS: Final = 0.25
TRANSFER_SECONDS: Final = 5.0
# The most files on their way to or from Redis at once. Lookups have their own connections.
TRANSFERS: Final = 4

# magic, width, height, bytes of the file, SHA-256 of the key; the CRC-32 of these follows.
_RECORD = struct.Struct("<4sIIQ32s")
_CHECKSUM = struct.Struct("<I")
# Version 2. Records of version 1 do not count, because their width and height ignore the image's
# orientation.
_MAGIC = b"PXI2"

show_from_the_start("image_find", "image_keep", "image_get", "image_put", "image_delete")
for operation in ("image_find", "image_get"):
    FAILURES.labels(operation, "damaged")


@dataclass(frozen=True, slots=True)
class ImageName:
    """`sha256` is the file's 32-byte digest, which a gateway computed from the bytes; `scope` is
    the image's tenant."""

    sha256: bytes
    scope: str

    # The braces put the record on one shard with the image's embeddings.
    @property
    def record_key(self) -> str:
        return f"pixtral:image:{{{self.sha256.hex()}}}:{self.scope}"

    @property
    def file_key(self) -> str:
        return f"pixtral:file:{{{self.sha256.hex()}}}:{self.scope}"


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Pixels, and the bytes of the file."""

    width: int
    height: int
    nbytes: int


class NamedImages:
    """A cache: a fault of Redis is not an error, and the image counts as missing.

    Args:
        lookups: the Redis for small operations that a request waits for.
        transfers: the Redis for files.
    """

    def __init__(self, lookups: GuardedRedis, transfers: GuardedRedis) -> None:
        self._lookups = lookups
        self._transfers = transfers
        self._keeping: set[asyncio.Task[None]] = set()

    async def find(
        self, names: Sequence[ImageName], fingerprint: str | None
    ) -> dict[ImageName, ImageSize]:
        """The sizes of those images with which a request can be answered: Redis has the file, or an
        embedding under `fingerprint`. Without a fingerprint, the sizes of all images that have a
        record. One round trip for all names."""
        if not names:
            return {}
        redis = self._lookups.client

        async def look_up() -> list[bytes | int | None]:
            async with redis.pipeline(transaction=False) as pipeline:
                for name in names:
                    pipeline.getex(name.record_key, ex=KEEP_SECONDS)
                    # The reply says whether Redis has the file.
                    pipeline.expire(name.file_key, KEEP_SECONDS)
                    if fingerprint is not None:
                        # An embedding in either detail counts. If the requested detail has none,
                        # the gateway needs the file later.
                        pipeline.exists(
                            *(
                                EmbeddingKey(name.sha256, fingerprint, name.scope, low).redis_key
                                for low in (False, True)
                            )
                        )
                return await pipeline.execute()

        replies = await self._lookups.attempt("image_find", LOOKUP_SECONDS, look_up)
        if replies is None:
            return {}
        found = {}
        each = 2 if fingerprint is None else 3
        for i, name in enumerate(names):
            record, *sources = replies[i * each : (i + 1) * each]
            if record is None or not (fingerprint is None or any(sources)):
                continue
            size = _unpack(name, cast(bytes, record))
            if size is None:
                FAILURES.labels("image_find", "damaged").inc()
                await self._delete(name.record_key)
            else:
                found[name] = size
        return found

    def keep_sizes(self, sizes: Mapping[ImageName, ImageSize]) -> None:
        """Records sizes in the background."""
        if sizes:
            task = asyncio.create_task(self._keep_sizes(sizes))
            self._keeping.add(task)
            task.add_done_callback(self._keeping.discard)

    async def put(self, name: ImageName, size: ImageSize, data: bytes) -> bool:
        """Stores a file with the digest of `name`; True once Redis has it."""
        redis = self._transfers.client

        async def store() -> list[object]:
            async with redis.pipeline(transaction=False) as pipeline:
                pipeline.set(name.file_key, data, ex=KEEP_SECONDS)
                pipeline.set(name.record_key, _pack(name, size), ex=KEEP_SECONDS)
                return await pipeline.execute()

        return await self._transfers.attempt("image_put", TRANSFER_SECONDS, store) is not None

    async def get(self, name: ImageName) -> bytes | None:
        """The file, or None if Redis does not have it. A file whose digest is not its name's is
        deleted."""
        redis = self._transfers.client
        data = cast(
            "bytes | None",
            await self._transfers.attempt(
                "image_get", TRANSFER_SECONDS, lambda: redis.get(name.file_key)
            ),
        )
        if data is None or await asyncio.to_thread(_sha256, data) == name.sha256:
            return data
        FAILURES.labels("image_get", "damaged").inc()
        await self._delete(name.file_key)
        return None

    async def close(self) -> None:
        """Closes `transfers`, but not `lookups`, which others use."""
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        await self._transfers.close()

    async def _keep_sizes(self, sizes: Mapping[ImageName, ImageSize]) -> None:
        redis = self._lookups.client
        records = {name.record_key: _pack(name, size) for name, size in sizes.items()}

        async def store() -> None:
            if len(records) == 1:
                # A pipeline of one command costs more than the command.
                ((key, record),) = records.items()
                await redis.set(key, record, ex=KEEP_SECONDS)
                return
            async with redis.pipeline(transaction=False) as pipeline:
                for key, record in records.items():
                    pipeline.set(key, record, ex=KEEP_SECONDS)
                await pipeline.execute()

        await self._lookups.attempt("image_keep", LOOKUP_SECONDS, store)

    async def _delete(self, key: str) -> None:
        redis = self._lookups.client
        await self._lookups.attempt("image_delete", LOOKUP_SECONDS, lambda: redis.delete(key))


def _pack(name: ImageName, size: ImageSize) -> bytes:
    record = _RECORD.pack(_MAGIC, size.width, size.height, size.nbytes, _digest(name))
    return record + _CHECKSUM.pack(zlib.crc32(record))


def _unpack(name: ImageName, value: bytes) -> ImageSize | None:
    """None if the record is damaged or belongs to another image."""
    if len(value) != _RECORD.size + _CHECKSUM.size:
        return None
    magic, width, height, nbytes, digest = _RECORD.unpack_from(value)
    (checksum,) = _CHECKSUM.unpack_from(value, _RECORD.size)
    is_whole = checksum == zlib.crc32(value[: _RECORD.size])
    if not is_whole or magic != _MAGIC or digest != _digest(name) or min(width, height) < 1:
        return None
    return ImageSize(width, height, nbytes)


def _digest(name: ImageName) -> bytes:
    return hashlib.sha256(name.record_key.encode("ascii")).digest()


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
