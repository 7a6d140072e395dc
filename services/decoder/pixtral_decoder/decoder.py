"""From a request to its deltas: admission, checks, embeddings, engine."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from pixtral_core.errors import FailedPrecondition, InvalidRequest, Overloaded, Unavailable
from pixtral_core.telemetry.request_log import current_span, first_token, note
from pixtral_decoder.checks import Limits, check_fits, check_prompt
from pixtral_decoder.embeddings.image_embedding import ImageEmbedding
from pixtral_decoder.embeddings.source import EmbeddingMissing, EmbeddingSource, record
from pixtral_decoder.engine.engine import (
    DecoderEngine,
    Delta,
    EngineDead,
    ImagesNotHeld,
    SamplingRefused,
)
from pixtral_decoder.metrics import ADMITTED, ADMITTED_LIMIT
from pixtral_decoder.request import ImagePlace, Prompt


class Decoder:
    """Gives at most `max_admitted` answers at once; a request has `n` of them."""

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
            FailedPrecondition: EMBEDDING_MISSING, FINGERPRINT_MISMATCH, ADAPTER_MISSING.
            Overloaded, Unavailable: there is no room, or no engine.
        """
        note(prompt_tokens=len(prompt.token_ids), images=len(prompt.images))
        check_prompt(prompt, self._limits)
        self._check_fingerprints(prompt.images)
        if prompt.adapter and prompt.adapter not in self._engine.adapters:
            raise FailedPrecondition("the decoder has no such adapter", "ADAPTER_MISSING")
        answers = prompt.sampling.n
        if answers > self._max_admitted:
            raise InvalidRequest("sampling.n", f"must be at most {self._max_admitted} here")
        if self.admitted + answers > self._max_admitted:
            raise Overloaded("the decoder's queue is full")
        self.admitted += answers
        ADMITTED.inc(answers)
        try:
            async with aclosing(self._run(prompt)) as deltas:
                async for delta in deltas:
                    yield delta
        except SamplingRefused as refused:
            raise InvalidRequest(
                refused.field, "a value is not one that the engine takes"
            ) from None
        except EngineDead:
            raise Unavailable("the engine has died", reason="ENGINE_DEAD") from None
        finally:
            self.admitted -= answers
            ADMITTED.dec(answers)

    async def close(self) -> None:
        await self._source.close()

    async def _run(self, prompt: Prompt) -> AsyncGenerator[Delta]:
        embeddings = await self._embeddings(prompt.images, skip_held=True)
        try:
            async with aclosing(self._stream(prompt, embeddings, resend=False)) as deltas:
                async for delta in deltas:
                    yield delta
            return
        except ImagesNotHeld:
            # Dropped by the engine since it was asked; rare, and before the first delta.
            pass
        embeddings = await self._embeddings(prompt.images, skip_held=False)
        async with aclosing(self._stream(prompt, embeddings, resend=True)) as deltas:
            async for delta in deltas:
                yield delta

    async def _stream(
        self, prompt: Prompt, embeddings: Sequence[ImageEmbedding | None], *, resend: bool
    ) -> AsyncGenerator[Delta]:
        """The engine's deltas; the current call is told how long it took for them."""
        began, first, tokens = time.monotonic(), None, 0
        try:
            stream = self._engine.generate(prompt, embeddings, resend=resend)
            async with aclosing(stream) as deltas:
                async for delta in deltas:
                    if first is None:
                        first = time.monotonic()
                        _tell_first(delta, began, first)
                    tokens += len(delta.token_ids)
                    yield delta
        finally:
            if first is not None:
                note(completion_tokens=tokens)
                current_span().part("stream", first, time.monotonic(), completion_tokens=tokens)

    async def _embeddings(
        self, images: Sequence[ImagePlace], *, skip_held: bool
    ) -> list[ImageEmbedding | None]:
        async def one(index: int, image: ImagePlace) -> ImageEmbedding | None:
            if skip_held and self._engine.holds(image):
                record("local")
                return None
            embedding = await self._source.get(image)
            check_fits(index, image.grid, embedding.grid)
            return embedding

        # All are waited for: whoever encodes what is missing wants to know of everything at once.
        results = await asyncio.gather(
            *(one(index, image) for index, image in enumerate(images)), return_exceptions=True
        )
        missing = [
            index for index, result in enumerate(results) if isinstance(result, EmbeddingMissing)
        ]
        embeddings: list[ImageEmbedding | None] = []
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


def _tell_first(delta: Delta, began: float, now: float) -> None:
    first_token()
    note(cached_tokens=delta.cached_tokens, queue_seconds=delta.queue_seconds)
    scheduled = min(began + delta.queue_seconds, now)
    current_span().part("queue", began, scheduled)
    current_span().part("prefill", scheduled, now, cached_tokens=delta.cached_tokens)
