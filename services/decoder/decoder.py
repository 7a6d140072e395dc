"""From a request to its deltas: admission, checks, embeddings, engine."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import torch

from embeddings.metrics import REQUESTS
from services.decoder.checks import Limits, check_fits, check_prompt
from services.decoder.engine import (
    DecoderEngine,
    Delta,
    EngineDead,
    ImagesNotHeld,
    SamplingRefused,
)
from services.decoder.metrics import ADMITTED, ADMITTED_LIMIT
from services.decoder.prompt import ImagePlace, Prompt
from services.decoder.source import EmbeddingMissing, EmbeddingSource
from serving.errors import FailedPrecondition, InvalidRequest, Overloaded, Unavailable


class Decoder:
    """Generates for at most `max_admitted` requests at once."""

    def __init__(
        self,
        *,
        engine: DecoderEngine,
        source: EmbeddingSource,
        limits: Limits,
        fingerprint: str,
        max_admitted: int,
    ) -> None:
        self.admitted = 0
        self._engine = engine
        self._source = source
        self._limits = limits
        self._fingerprint = fingerprint
        self._max_admitted = max_admitted
        ADMITTED_LIMIT.set(max_admitted)

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Delta]:
        """Deltas as the engine makes them; closing or cancelling stops the engine's work.

        Raises:
            InvalidRequest: with the field's path.
            FailedPrecondition: EMBEDDING_MISSING, FINGERPRINT_MISMATCH.
            Overloaded, Unavailable: there is no room, or no engine.
        """
        check_prompt(prompt, self._limits)
        self._check_fingerprints(prompt.images)
        if self.admitted >= self._max_admitted:
            raise Overloaded("the decoder's queue is full")
        self.admitted += 1
        ADMITTED.inc()
        try:
            async with aclosing(self._run(prompt)) as deltas:
                async for delta in deltas:
                    yield delta
        except SamplingRefused:
            raise InvalidRequest("sampling", "a value is not one that the engine takes") from None
        except EngineDead:
            raise Unavailable("the engine has died", reason="ENGINE_DEAD") from None
        finally:
            self.admitted -= 1
            ADMITTED.dec()

    async def close(self) -> None:
        await self._source.close()

    async def _run(self, prompt: Prompt) -> AsyncGenerator[Delta]:
        embeddings = await self._embeddings(prompt.images, skip_held=True)
        try:
            async with aclosing(self._engine.generate(prompt, embeddings)) as deltas:
                async for delta in deltas:
                    yield delta
            return
        except ImagesNotHeld:
            # Dropped by the engine since it was asked; rare, and before the first delta.
            pass
        embeddings = await self._embeddings(prompt.images, skip_held=False)
        stream = self._engine.generate(prompt, embeddings, resend=True)
        async with aclosing(stream) as deltas:
            async for delta in deltas:
                yield delta

    async def _embeddings(
        self, images: Sequence[ImagePlace], *, skip_held: bool
    ) -> list[torch.Tensor | None]:
        async def one(index: int, image: ImagePlace) -> torch.Tensor | None:
            if skip_held and self._engine.holds(image):
                REQUESTS.labels("local").inc()
                return None
            embedding = await self._source.get(image)
            check_fits(index, image.grid, embedding.grid)
            return embedding.tensor

        # All are waited for: whoever encodes what is missing wants to know of everything at once.
        results = await asyncio.gather(
            *(one(index, image) for index, image in enumerate(images)), return_exceptions=True
        )
        missing = [
            index for index, result in enumerate(results) if isinstance(result, EmbeddingMissing)
        ]
        embeddings: list[torch.Tensor | None] = []
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, EmbeddingMissing):
                raise result
            if not isinstance(result, BaseException):
                embeddings.append(result)
        if missing:
            raise FailedPrecondition(
                "embeddings are missing",
                "EMBEDDING_MISSING",
                metadata={"images": ",".join(map(str, missing))},
            )
        return embeddings

    def _check_fingerprints(self, images: Sequence[ImagePlace]) -> None:
        if any(image.key.fingerprint != self._fingerprint for image in images):
            raise FailedPrecondition(
                "an image's fingerprint is not this decoder's", "FINGERPRINT_MISMATCH"
            )
