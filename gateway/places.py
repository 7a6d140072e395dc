"""Where the embeddings of a request's images are."""

import asyncio
from collections.abc import Mapping, Sequence

from embeddings.key import EmbeddingKey
from embeddings.store import EmbeddingStore
from gateway.deadline import Deadline
from gateway.encoders import Encoded, Encoders
from gateway.images import ImageInput
from gateway.metrics import ENCODE_SECONDS
from gateway.replicas import Contract
from serving.call import current_span
from serving.errors import FailedPrecondition, Unavailable


class Places:
    """Knows what Redis holds, and has encoded what it does not."""

    def __init__(self, store: EmbeddingStore, encoders: Encoders) -> None:
        self._store = store
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
        with ENCODE_SECONDS.time():
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = {
                        key: group.create_task(
                            self._encoders.encode(image, key, contract, deadline)
                        )
                        for key, image in misses.items()
                    }
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None
        return {key: task.result() for key, task in tasks.items()}


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
