"""Answers a request: checks it, admits it, gets its embeddings, and runs the engine."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing

from pixtral_core.errors import FailedPrecondition, InvalidRequest, Unavailable
from pixtral_core.telemetry.request_log import current_span, first_token, note
from pixtral_decoder.checks import Limits, check_fits, check_prompt
from pixtral_decoder.embeddings.image_embedding import ImageEmbedding
from pixtral_decoder.embeddings.source import EmbeddingMissing, EmbeddingSource, record
from pixtral_decoder.embeddings.waiting_bytes import WaitingBytes
from pixtral_decoder.engine.engine import (
    DecoderEngine,
    Delta,
    EngineDead,
    ImagesNotHeld,
    NothingFollows,
    SamplingRefused,
    StructureTooSlow,
)
from pixtral_decoder.prompt_work import PromptWork
from pixtral_decoder.request import ImagePlace, Prompt
from pixtral_decoder.waiting_queue import WaitingQueue

TOO_SLOW = (
    "each token of this answer took too long to compute: write the structure so that a text can be "
    "read in one way only, with no part that may be empty or repeat within a repetition"
)


class Decoder:
    """Generates answers. A request has `n` answers, and `queue` limits the answers of all requests.

    Attributes:
        work: the prompts that the engine has yet to compute.
    """

    def __init__(
        self,
        *,
        engine: DecoderEngine,
        source: EmbeddingSource,
        limits: Limits,
        fingerprint: str,
        queue: WaitingQueue,
        waiting_bytes: WaitingBytes,
    ) -> None:
        self.queue = queue
        self.work = PromptWork()
        self._waiting_bytes = waiting_bytes
        self._engine = engine
        self._source = source
        self._limits = limits
        self._fingerprint = fingerprint

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Delta]:
        """Deltas as the engine makes them; closing or cancelling stops the engine's work.

        Raises:
            InvalidRequest: the exception has the path of the field.
            FailedPrecondition: EMBEDDING_MISSING, FINGERPRINT_MISMATCH, ADAPTER_MISSING.
            Overloaded: too many answers or embeddings wait for the engine.
            Unavailable: the engine has died.
        """
        note(prompt_tokens=len(prompt.token_ids), images=len(prompt.images))
        check_prompt(prompt, self._limits)
        self._check_fingerprints(prompt.images)
        if prompt.adapter and prompt.adapter not in self._engine.adapters:
            raise FailedPrecondition("the decoder has no such adapter", "ADAPTER_MISSING")
        answers = prompt.sampling.n
        tenant = prompt.cache_salt or ""
        self.queue.enter(answers, tenant)
        stream, begun = _StreamRecord(), ExitStack()
        try:
            computed = begun.enter_context(self.work.prompt(prompt.expected_tokens))
            awaited = (image for image in prompt.images if not self._engine.holds(image))
            begun.callback(self._waiting_bytes.take(awaited))
            # Between `holds` and the request, the engine may drop an image. The second round then
            # sends all images.
            for resend in (False, True):
                embeddings = await self._embeddings(prompt.images, skip_held=not resend)
                stream.begin()
                generated = self._engine.generate(prompt, embeddings, resend=resend)
                try:
                    async with aclosing(generated) as deltas:
                        async for delta in deltas:
                            computed(max(0, len(prompt.token_ids) - delta.cached_tokens))
                            begun.close()
                            stream.add(delta)
                            yield delta
                    break
                except ImagesNotHeld:
                    if resend:
                        raise
        except SamplingRefused as refused:
            raise InvalidRequest(
                refused.field, refused.why or "a value is not one that the engine takes"
            ) from None
        except StructureTooSlow as slow:
            raise InvalidRequest(slow.field, TOO_SLOW, "STRUCTURE_TOO_SLOW") from None
        except NothingFollows as ended:
            raise InvalidRequest(
                ended.field, "the structure allows no token after the last token of this answer"
            ) from None
        except EngineDead:
            raise Unavailable("the engine has died", reason="ENGINE_DEAD") from None
        finally:
            begun.close()
            stream.end()
            self.queue.leave(answers, stream.run_seconds, tenant)

    async def close(self) -> None:
        await self._source.close()

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

        # With the results of all images, a single error names every missing image, so that the
        # gateway has all of them encoded at once.
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


class _StreamRecord:
    """Writes the times and tokens of one stream to the request's log line and span."""

    __slots__ = ("_began", "_first", "_scheduled", "_tokens")

    def __init__(self) -> None:
        self._began = self._scheduled = 0.0
        self._first: float | None = None
        self._tokens = 0

    @property
    def run_seconds(self) -> float | None:
        """The time since the engine began the request; None before its first delta."""
        return None if self._first is None else time.monotonic() - self._scheduled

    def begin(self) -> None:
        self._began = time.monotonic()

    def add(self, delta: Delta) -> None:
        self._tokens += len(delta.token_ids)
        if self._first is None:
            self._first = time.monotonic()
            self._record_first(delta, self._first)

    def end(self) -> None:
        if self._first is not None:
            note(completion_tokens=self._tokens)
            span = current_span()
            span.part("stream", self._first, time.monotonic(), completion_tokens=self._tokens)

    def _record_first(self, delta: Delta, now: float) -> None:
        first_token()
        note(cached_tokens=delta.cached_tokens, queue_seconds=delta.queue_seconds)
        self._scheduled = min(self._began + delta.queue_seconds, now)
        current_span().part("queue", self._began, self._scheduled)
        current_span().part("prefill", self._scheduled, now, cached_tokens=delta.cached_tokens)
