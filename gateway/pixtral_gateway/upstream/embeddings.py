"""Finds the embeddings of a request's images, and asks encoders for the missing ones."""

from collections.abc import Mapping, Sequence

from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.cache.embedding_store import EmbeddingStore
from pixtral_core.concurrency.deadline import Deadline
from pixtral_core.concurrency.gather import run_all
from pixtral_core.errors import Unavailable
from pixtral_core.telemetry.request_log import current_span
from pixtral_gateway.images.image_reader import ImageInput
from pixtral_gateway.images.request_images import RequestImages
from pixtral_gateway.metrics import ENCODE_SECONDS
from pixtral_gateway.upstream.encoders import Encoded, Encoders
from pixtral_gateway.upstream.replica import Contract


class EmbeddingLocator:
    """Looks embeddings up in Redis, and asks the encoders for the missing ones."""

    def __init__(self, store: EmbeddingStore, images: RequestImages, encoders: Encoders) -> None:
        self._store = store
        self._images = images
        self._encoders = encoders

    async def find(
        self, wanted: Mapping[EmbeddingKey, ImageInput], contract: Contract, deadline: Deadline
    ) -> dict[EmbeddingKey, Encoded]:
        """The encoder of each embedding. Images without an embedding in Redis are encoded."""
        with current_span().child("lookup", images=len(wanted)):
            stored = dict(zip(wanted, await self._store.exist(list(wanted)), strict=True))
        located = {
            key: Encoded(self._encoders.owner(key, contract), cached=True)
            for key, is_stored in stored.items()
            if is_stored
        }
        misses = {key: image for key, image in wanted.items() if not stored[key]}
        if not misses:
            return located
        try:
            return located | await self.encode(misses, contract, deadline)
        except Unavailable:
            # A decoder may still have the embeddings, and reports those that it lacks.
            return located | {key: Encoded("", cached=True) for key in misses}

    async def encode(
        self, misses: Mapping[EmbeddingKey, ImageInput], contract: Contract, deadline: Deadline
    ) -> dict[EmbeddingKey, Encoded]:
        async def encode(key: EmbeddingKey, image: ImageInput) -> Encoded:
            async with self._images.whole(image, key.scope) as whole:
                return await self._encoders.encode(whole, key, contract, deadline)

        with ENCODE_SECONDS.time():
            encoded = await run_all([encode(key, image) for key, image in misses.items()])
        return dict(zip(misses, encoded, strict=True))


def any_encoded(located: Mapping[EmbeddingKey, Encoded]) -> bool:
    return not all(each.cached for each in located.values())


def image_facts(located: Sequence[Encoded], encode: float) -> dict[str, int | float]:
    """Fields of the log line; `encode` is in seconds."""
    cached = sum(each.cached for each in located)
    return {"cached_images": cached, "encode_seconds": encode}
