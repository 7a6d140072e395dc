"""Where the embeddings of a request's images are."""

from collections.abc import Mapping, Sequence

from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.cache.embedding_store import EmbeddingStore
from pixtral_core.concurrency.deadline import Deadline
from pixtral_core.concurrency.gather import together
from pixtral_core.errors import FailedPrecondition, Unavailable
from pixtral_core.telemetry.request_log import current_span
from pixtral_gateway.images.image_reader import ImageInput
from pixtral_gateway.images.request_images import RequestImages
from pixtral_gateway.metrics import ENCODE_SECONDS
from pixtral_gateway.upstream.encoders import Encoded, Encoders
from pixtral_gateway.upstream.replica import Contract


class Places:
    """Knows what Redis holds, and has encoded what it does not."""

    def __init__(self, store: EmbeddingStore, images: RequestImages, encoders: Encoders) -> None:
        self._store = store
        self._images = images
        self._encoders = encoders

    async def find(
        self, wanted: Mapping[EmbeddingKey, ImageInput], contract: Contract, deadline: Deadline
    ) -> dict[EmbeddingKey, Encoded]:
        """Where each embedding is; what Redis does not hold is encoded."""
        with current_span().child("lookup", images=len(wanted)):
            stored = dict(zip(wanted, await self._store.exist(list(wanted)), strict=True))
        places = {
            key: Encoded(self._encoders.owner(key, contract), cached=True)
            for key, is_stored in stored.items()
            if is_stored
        }
        misses = {key: image for key, image in wanted.items() if not stored[key]}
        if not misses:
            return places
        try:
            return places | await self.encode(misses, contract, deadline)
        except Unavailable:
            # The decoder may hold them still, and says so where it does not.
            return places | {key: Encoded("", cached=True) for key in misses}

    async def encode(
        self, misses: Mapping[EmbeddingKey, ImageInput], contract: Contract, deadline: Deadline
    ) -> dict[EmbeddingKey, Encoded]:
        async def encode(key: EmbeddingKey, image: ImageInput) -> Encoded:
            async with self._images.whole(image, key.scope) as whole:
                return await self._encoders.encode(whole, key, contract, deadline)

        with ENCODE_SECONDS.time():
            encoded = await together([encode(key, image) for key, image in misses.items()])
        return dict(zip(misses, encoded, strict=True))


def missing(error: FailedPrecondition, images: int) -> list[int]:
    """Indexes of the images that a decoder could not get."""
    named = error.metadata.get("images", "").split(",")
    indexes = [int(index) for index in named if index.isdecimal()]
    if not indexes or max(indexes) >= images:
        raise RuntimeError("a decoder misses images that it was not given")
    return indexes


def any_encoded(places: Mapping[EmbeddingKey, Encoded]) -> bool:
    return not all(place.cached for place in places.values())


def image_facts(places: Sequence[Encoded], encode: float) -> dict[str, int | float]:
    cached = sum(place.cached for place in places)
    return {"cached_images": cached, "encode_seconds": encode}
