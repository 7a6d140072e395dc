"""From an image file to its embedding in Redis. Concurrent requests encode an image once."""

import asyncio
import hashlib
import math
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum

import grpc
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixtral_core.cache import wire_format
from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.cache.embedding_store import EmbeddingStore
from pixtral_core.cache.lru import ByteLru
from pixtral_core.cache.metrics import REQUESTS
from pixtral_core.cache.receiving import Arrival
from pixtral_core.cache.wire_format import DType, Embedding
from pixtral_core.concurrency.queue_shares import QueueShares
from pixtral_core.concurrency.single_flight import SingleFlight
from pixtral_core.concurrency.turns import Turns
from pixtral_core.errors import FailedPrecondition, InvalidRequest, ServingError
from pixtral_core.model.vision_spec import Grid, VisionSpec
from pixtral_core.telemetry.request_log import current_span, note
from pixtral_encoder.batcher import Batcher
from pixtral_encoder.image.preprocess import OpenedImage, Preprocessor
from pixtral_encoder.tower.tower import Staged, VisionTower
from pixtral_encoder.waiting_deadline import TooLate, WaitingDeadline

# Hashing this much takes about a millisecond.
OFFLOAD_BYTES = 1 << 20


class Source(StrEnum):
    """The place where an embedding was found, or `ENCODED` if it was made."""

    LOCAL = "local"
    REDIS = "redis"
    ENCODED = "encoded"


@dataclass(frozen=True, slots=True)
class EncodedResult:
    """The outcome of one request. `stored` is true if Redis has the embedding."""

    grid: Grid
    source: Source
    stored: bool


@dataclass(frozen=True, slots=True)
class CachedEmbedding:
    """An embedding in its wire format."""

    grid: Grid
    value: bytes


class Encoder:
    """Finds embeddings in memory or Redis, and makes the missing ones.

    Concurrent requests for one key share one task. The task is cancelled when no request waits for
    it any more: then the image is not decoded, and joins no batch. If its batch is already running,
    the result is discarded. An image is not encoded if its embedding would come too late for all
    requests that wait.
    """

    def __init__(
        self,
        *,
        spec: VisionSpec,
        dtype: DType,
        fingerprint: str,
        preprocessor: Preprocessor,
        tower: VisionTower,
        batcher: Batcher[Staged],
        store: EmbeddingStore,
        cache_bytes: int,
        queue_images: int,
        queue_bytes: int,
        max_image_bytes: int,
        images_decoding: int,
    ) -> None:
        self._spec = spec
        self._dtype = dtype
        self._fingerprint = fingerprint
        self._preprocessor = preprocessor
        self._tower = tower
        self._batcher = batcher
        self._store = store
        self._held: ByteLru[EmbeddingKey, CachedEmbedding] = ByteLru(cache_bytes)
        self._flights: SingleFlight[EmbeddingKey, EncodedResult] = SingleFlight()
        self._latest_deadlines: dict[EmbeddingKey, WaitingDeadline] = {}
        self._images = QueueShares(queue_images, "too many images are waiting to be encoded")
        # Every request counts with the bytes of its file, because several may send the same image.
        self._files = QueueShares(queue_bytes, "too many bytes of images are waiting to be encoded")
        # Only as many images as there are processes enter the decode processes at once. So images
        # wait here, where tenants take turns, and not there.
        self._decoding = Turns(images_decoding)
        # With two processes or more, large images leave one process free, so that no ordinary image
        # waits for seconds while large images are decoded.
        self._large = Turns(max(1, images_decoding - 1))
        self._max_image_bytes = max_image_bytes

    async def encode(
        self, key: EmbeddingKey, image: bytes, deadline: float = math.inf
    ) -> EncodedResult:
        """Makes sure that the embedding of `image` is in memory or in Redis.

        `deadline` is on the monotonic clock.

        Raises:
            InvalidRequest: if the image cannot be decoded, or its SHA-256 is not that of the key.
            FailedPrecondition: if the key is for the embedding of another model.
            Overloaded: if too many images, bytes or patches wait.
            TooLate: if the image cannot be encoded before the deadline.
            Unavailable: if the device is lost.
        """
        if key.fingerprint != self._fingerprint:
            raise FailedPrecondition(
                "the key is for another model, preprocessing or dtype than this encoder's",
                "FINGERPRINT_MISMATCH",
            )
        with self._files.room(key.scope, len(image)):
            await self._check_image(key, image)
            with self._waiting_for(key, deadline) as latest_deadline:
                result = await self._shared(key, image, latest_deadline, deadline)
        REQUESTS.labels(result.source).inc()
        note(source=result.source.value, patches=self._patches(result.grid))
        return result

    def held(self, key: EmbeddingKey) -> bytes | None:
        """The embedding in its wire format, or None if this process does not have it in memory."""
        held = self._held.get(key)
        return None if held is None else held.value

    async def close(self) -> None:
        """Ends the threads and closes the connections."""
        await asyncio.to_thread(self._preprocessor.close)
        await self._batcher.close()
        await self._store.close()

    async def _check_image(self, key: EmbeddingKey, image: bytes) -> None:
        if len(image) > self._max_image_bytes:
            raise InvalidRequest(
                "image",
                f"the image is larger than {self._max_image_bytes} bytes",
                "IMAGE_TOO_LARGE",
            )
        if not image:
            raise InvalidRequest("image", "the image is empty", "IMAGE_EMPTY")
        if len(image) > OFFLOAD_BYTES:
            digest = await asyncio.to_thread(_sha256, image)
        else:
            digest = _sha256(image)
        if digest != key.image_sha256:
            raise InvalidRequest("key.image_sha256", "not the SHA-256 of the image", "KEY_MISMATCH")

    @contextmanager
    def _waiting_for(self, key: EmbeddingKey, deadline: float) -> Iterator[WaitingDeadline]:
        """The deadlines of all callers that wait for the key, including this caller."""
        latest_deadline = self._latest_deadlines.setdefault(key, WaitingDeadline())
        try:
            with latest_deadline.of(deadline):
                yield latest_deadline
        finally:
            if latest_deadline.is_over:
                self._latest_deadlines.pop(key, None)

    async def _shared(
        self, key: EmbeddingKey, image: bytes, latest_deadline: WaitingDeadline, deadline: float
    ) -> EncodedResult:
        while True:
            try:
                return await self._flights.run(
                    key, lambda: self._admitted(key, image, latest_deadline)
                )
            except TooLate as late:
                # The image was dropped for callers with earlier deadlines. This caller came in that
                # moment, and tries again if its own deadline is later.
                if deadline <= late.until:
                    raise

    async def _admitted(
        self, key: EmbeddingKey, image: bytes, latest_deadline: WaitingDeadline
    ) -> EncodedResult:
        # This runs once for all requests that wait for the image, so the image counts once.
        with self._images.room(key.scope, 1):
            return await self._find_or_encode(key, image, latest_deadline)

    async def _find_or_encode(
        self, key: EmbeddingKey, image: bytes, latest_deadline: WaitingDeadline
    ) -> EncodedResult:
        held = self._held.get(key)
        if held is not None:
            # Redis may have lost the embedding since then, so it is stored there again if needed.
            stored = await self._is_stored(key) or await self._store.put(key, held.value)
            return EncodedResult(held.grid, Source.LOCAL, stored)
        with current_span().child("lookup"):
            found = await self._store.get(key, Arriving(key))
        if found is not None:
            # The embedding also stays in memory for Fetch, because a decoder may be unable to get
            # it from Redis.
            self._held.put(key, found, len(found.value))
            return EncodedResult(found.grid, Source.REDIS, stored=True)
        with current_span().child("open"):
            async with self._decoding.turn(key.scope):
                opened = await self._preprocessor.open(
                    image, key.image_sha256, low_detail=key.low_detail
                )
        value = await self._encode(key, opened, latest_deadline)
        self._held.put(key, CachedEmbedding(opened.grid, value), len(value))
        with current_span().child("store", bytes=len(value)):
            stored = await self._store.put(key, value)
        return EncodedResult(opened.grid, Source.ENCODED, stored)

    async def _is_stored(self, key: EmbeddingKey) -> bool:
        return (await self._store.exist([key]))[0]

    async def _encode(
        self, key: EmbeddingKey, opened: OpenedImage, latest_deadline: WaitingDeadline
    ) -> bytes:
        grid = opened.grid
        patches = self._patches(grid)
        with self._batcher.admit(patches, latest_deadline, key.scope) as slot:
            with current_span().child("preprocess", patches=patches):
                pixels = await self._pixels(opened, key.scope)
            with current_span().child("stage"):
                staged = await asyncio.to_thread(self._tower.stage, pixels)
            embedding = await self._batcher.embed(staged, slot)
        with current_span().child("pack"):
            return await asyncio.to_thread(self._to_wire, key, grid, embedding)

    async def _pixels(self, opened: OpenedImage, tenant: str) -> NDArray[np.float32]:
        amount = opened.decode_bytes
        async with AsyncExitStack() as turns:
            if self._preprocessor.is_large(opened):
                await turns.enter_async_context(self._large.turn(tenant, amount))
            await turns.enter_async_context(self._decoding.turn(tenant, amount))
            return await self._preprocessor.pixels(opened)

    def _patches(self, grid: Grid) -> int:
        return grid.tokens * self._spec.merge_size**2

    def _to_wire(self, key: EmbeddingKey, grid: Grid, embedding: Tensor) -> bytes:
        try:
            embedding = self._tower.fetch(embedding)
        except ValueError:
            raise ServingError(
                grpc.StatusCode.INTERNAL,
                "EMBEDDING_NOT_FINITE",
                "the model's numbers overflow on this image",
            ) from None
        data = embedding.flatten().view(torch.uint8).numpy().data
        return wire_format.encode(
            key, Embedding(grid.rows, grid.cols, self._spec.width, self._dtype, data)
        )


class Arriving(Arrival[CachedEmbedding]):
    def __init__(self, key: EmbeddingKey) -> None:
        self._key = key

    def made(self, embedding: Embedding) -> CachedEmbedding:
        return CachedEmbedding(
            Grid(embedding.rows, embedding.cols), wire_format.encode(self._key, embedding)
        )


def _sha256(image: bytes) -> bytes:
    return hashlib.sha256(image).digest()
