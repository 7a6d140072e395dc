"""The path of a request, from the conversation to the last token."""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import cast

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2
from pixtral_core.cache.embedding_key import EmbeddingKey, to_proto
from pixtral_core.cache.embedding_store import EmbeddingStore
from pixtral_core.errors import DeadlineExceeded, FailedPrecondition, ServingError, Unavailable
from pixtral_core.telemetry.request_log import current_span, first_token, note
from pixtral_gateway.checks.conversation import Conversation, Role
from pixtral_gateway.checks.validation import check_characters, check_length
from pixtral_gateway.images.image_reader import ImageInput
from pixtral_gateway.images.request_images import RequestImages
from pixtral_gateway.metrics import IMAGES, REQUESTS, TIME_TO_FIRST_TOKEN
from pixtral_gateway.prompt.prompt_encoder import Prompt, PromptEncoder
from pixtral_gateway.request import Ask, Finished, ImageReport, Timings, Usage
from pixtral_gateway.stream_buffer import merged
from pixtral_gateway.tenancy.admission import Admission, Permit
from pixtral_gateway.tenancy.tenants import Tenant
from pixtral_gateway.upstream.decoders import Decoders
from pixtral_gateway.upstream.embeddings import Places, any_encoded, image_facts, missing
from pixtral_gateway.upstream.encoders import Encoded, Encoders
from pixtral_gateway.upstream.registry import Tiers
from pixtral_gateway.upstream.replica import Contract
from pixtral_gateway.upstream.resume import answers_of
from pixtral_gateway.upstream.retry_budget import RetryBudget

# Tiers keep the deadline themselves; after this long only a client that stopped reading is left.
GRACE_SECONDS = 1.0


class Completions:
    """Answers conversations. One for the life of the process, used by all requests at once."""

    def __init__(
        self,
        *,
        images: RequestImages,
        prompts: PromptEncoder,
        store: EmbeddingStore,
        tiers: Tiers,
        admission: Admission,
        most_retries: Callable[[], int],
    ) -> None:
        """`most_retries` are made at once, in each tier; see RetryBudget."""
        self._images = images
        self._prompts = prompts
        self._tiers = tiers
        self._places = Places(
            store, images, Encoders(tiers.encoders, RetryBudget("encoder", most_retries))
        )
        self._decoders = Decoders(tiers.decoders, RetryBudget("decoder", most_retries))
        self._admission = admission

    @property
    def vocabulary_size(self) -> int:
        return self._prompts.vocabulary_size

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together. Raises Unavailable without a decoder."""
        return self._tiers.context_length

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the model's adapters that requests can ask for."""
        return self._tiers.adapters

    def check_room(self, tenant: Tenant) -> None:
        """Raises Overloaded where no request of this tenant would be let in."""
        self._admission.check(tenant)

    async def stream(self, ask: Ask) -> AsyncGenerator[chat_pb2.Choice | Finished]:
        """Streams what is generated, and at the end what is known of it.

        Raises ServingError. Closing the generator stops the work in every tier and frees the
        permit. A task that does not take what it is streamed is cancelled soon after the deadline.
        """
        code = "OK"
        overdue = _cancel_task(ask.deadline.remaining() + GRACE_SECONDS)
        try:
            images = len(ask.conversation.images)
            with self._admission.permit(ask.tenant, images, answers_of(ask.sampling)) as permit:
                async with aclosing(merged(self._told(ask, permit))) as events:
                    async for event in events:
                        yield event
        except ServingError as error:
            code = error.code.name
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = "DEADLINE_EXCEEDED" if _is_late(ask) else "CANCELLED"
            raise
        except Exception:
            code = "INTERNAL"
            raise
        finally:
            overdue.cancel()
            REQUESTS.labels(code).inc()

    async def count(self, conversation: Conversation, tenant: Tenant) -> Prompt:
        """The prompt that a conversation makes. Raises InvalidRequest and Overloaded."""
        with self._admission.permit(tenant, len(conversation.images)) as permit:
            _, prompt = await self._read(conversation, tenant, None, permit)
        return prompt

    async def tokenize(self, text: str, tenant: Tenant, *, bos: bool) -> Sequence[int]:
        """Token ids of a text outside any conversation. Raises InvalidRequest and Overloaded."""
        with self._admission.permit(tenant, 0):
            check_characters(
                len(text), "prompt", self._prompts.longest_token, self._tiers.context_length
            )
            return await self._prompts.tokenize(text, bos=bos)

    def _told(self, ask: Ask, permit: Permit) -> AsyncGenerator[chat_pb2.Choice | Finished]:
        """The answer, with its tool calls told apart from its text."""
        tools, calls = ask.conversation.tools, self._prompts.tools
        if not tools.offered or (not tools.forced and ask.sampling.HasField("structured_output")):
            return self._answer(ask, permit)
        held = replace(ask, sampling=calls.hold(tools, ask.sampling))
        return calls.read(self._answer(held, permit), tools)

    async def _answer(self, ask: Ask, permit: Permit) -> AsyncGenerator[chat_pb2.Choice | Finished]:
        contract = self._tiers.contract(ask.adapter)
        images, prompt = await self._read(ask.conversation, ask.tenant, contract, permit)
        ask.so_far.prompt_tokens = len(prompt.token_ids)
        ask.tenant.use("prompt", len(prompt.token_ids))
        check_length(len(prompt.token_ids), ask.sampling, self._tiers.context_length)
        keys = [
            EmbeddingKey(image.sha256, contract.fingerprint, ask.tenant.name) for image in images
        ]
        wanted = dict(zip(keys, images, strict=True))
        head = _head(ask.conversation, images, ask.adapter)

        encoding_began = time.monotonic()
        places = await self._places.find(wanted, contract, ask.deadline)
        encode = _since(encoding_began) if any_encoded(places) else 0.0
        note(**image_facts([places[key] for key in keys], encode))

        queue = time_to_first = 0.0
        cached_tokens = completion_tokens = 0
        finish_reason = chat_pb2.FINISH_REASON_UNSPECIFIED
        prompt_logprobs: list[chat_pb2.TokenLogprobs] = []
        request = _generate_request(prompt, keys, places, ask)
        try:
            for is_retry in (False, True):
                try:
                    async with aclosing(
                        self._decoders.generate(request, head, contract, ask.deadline)
                    ) as responses:
                        async for response in responses:
                            completion_tokens += len(response.delta.token_ids)
                            finish_reason = response.delta.finish_reason
                            if not time_to_first:
                                time_to_first = _since(ask.arrival)
                                # What a decoder that goes on for another says is of that one alone.
                                cached_tokens = response.cached_tokens
                                queue = response.queue.ToNanoseconds() / 1e9
                                first_token()
                                _observe(time_to_first, places)
                                self._images.keep(ask.conversation.images, images, ask.tenant)
                            if response.prompt_logprobs:
                                prompt_logprobs.extend(response.prompt_logprobs)
                            else:
                                yield response.delta
                    break
                except FailedPrecondition as error:
                    if is_retry:
                        raise Unavailable("an image's embedding cannot be had") from error
                    encoding_began = time.monotonic()
                    misses = {keys[i]: images[i] for i in missing(error, len(images))}
                    places |= await self._places.encode(misses, contract, ask.deadline)
                    for image, key in zip(request.images, keys, strict=True):
                        image.encoder = places[key].encoder
                    encode += _since(encoding_began)
                    note(**image_facts([places[key] for key in keys], encode))
        finally:
            ask.tenant.use("completion", completion_tokens)
            note(**_answer_facts(cached_tokens, completion_tokens, finish_reason))
        yield Finished(
            Usage(len(prompt.token_ids), prompt.image_tokens, cached_tokens, completion_tokens),
            Timings(queue, encode, time_to_first, _since(ask.arrival)),
            _report(images, prompt, [places[key] for key in keys]),
            prompt_logprobs,
        )

    async def _read(
        self, conversation: Conversation, tenant: Tenant, contract: Contract | None, permit: Permit
    ) -> tuple[list[ImageInput], Prompt]:
        permit.hold(conversation.image_bytes)
        check_characters(
            conversation.characters,
            "messages",
            self._prompts.longest_token,
            self._tiers.context_length,
        )
        with current_span().child("images", images=len(conversation.images)):
            images = await self._images.read_all(
                conversation.images, tenant, None if contract is None else contract.fingerprint
            )
        # What a URL holds, or was fetched from it, is beside that.
        sources = zip(images, conversation.images, strict=True)
        permit.hold(sum(len(image.data) for image, source in sources if source.url))
        with current_span().child("prompt"):
            prompt = await self._prompts.encode(conversation, [image.grid for image in images])
        note(images=len(images), prompt_tokens=len(prompt.token_ids))
        return images, prompt


def _cancel_task(seconds: float) -> asyncio.TimerHandle:
    task = cast("asyncio.Task[None]", asyncio.current_task())
    return asyncio.get_running_loop().call_later(seconds, task.cancel, DeadlineExceeded())


def _is_late(ask: Ask) -> bool:
    # A client's deadline is seen here as its cancel, a little before it passes on this side: what
    # it sent was rounded up by as much as a hundredth.
    granted = ask.deadline.at - ask.arrival
    return time.monotonic() >= ask.deadline.at - 0.05 - granted / 100


def _generate_request(
    prompt: Prompt,
    keys: Sequence[EmbeddingKey],
    places: Mapping[EmbeddingKey, Encoded],
    ask: Ask,
) -> decoder_pb2.GenerateRequest:
    return decoder_pb2.GenerateRequest(
        request_id=ask.id,
        prompt_token_ids=prompt.token_ids,
        images=[
            decoder_pb2.PromptImage(
                key=to_proto(key),
                offset=placed.offset,
                rows=placed.rows,
                cols=placed.cols,
                encoder=places[key].encoder,
            )
            for key, placed in zip(keys, prompt.images, strict=True)
        ],
        sampling=ask.sampling,
        cache_salt=ask.tenant.name,
        priority=ask.priority,
        adapter=ask.adapter,
    )


def _head(conversation: Conversation, images: Sequence[ImageInput], adapter: str) -> bytes:
    """Stands for a prompt's beginning: adapter, tools, system message, first image or else text.

    Equal for all turns of a conversation, and for all questions on one image.
    """
    first, *rest = conversation.turns
    digest = hashlib.sha256(adapter.encode())
    if conversation.tools.offered:
        digest.update(repr(conversation.tools.offered).encode())
    if first.role is Role.SYSTEM:
        digest.update(repr(first.parts).encode())
        first = rest[0]
    if any(not isinstance(part, str) for part in first.parts):
        digest.update(images[0].sha256)
    else:
        digest.update(repr(first.parts).encode())
    return digest.digest()


def _report(
    images: Sequence[ImageInput], prompt: Prompt, places: Sequence[Encoded]
) -> tuple[ImageReport, ...]:
    for place in places:
        IMAGES.labels("cached" if place.cached else "encoded").inc()
    return tuple(
        ImageReport(
            image.sha256.hex(),
            image.width,
            image.height,
            placed.length,
            place.cached,
            place.seconds,
        )
        for image, placed, place in zip(images, prompt.images, places, strict=True)
    )


def _answer_facts(
    cached_tokens: int, completion_tokens: int, finish_reason: chat_pb2.FinishReason.ValueType
) -> dict[str, int | str]:
    facts: dict[str, int | str] = {
        "cached_tokens": cached_tokens,
        "completion_tokens": completion_tokens,
    }
    if finish_reason:
        name = chat_pb2.FinishReason.Name(finish_reason)
        facts["finish_reason"] = name.removeprefix("FINISH_REASON_").lower()
    return facts


def _observe(first_token: float, places: Mapping[EmbeddingKey, Encoded]) -> None:
    images = "none" if not places else "encoded" if any_encoded(places) else "cached"
    TIME_TO_FIRST_TOKEN.labels(images).observe(first_token)


def _since(moment: float) -> float:
    return time.monotonic() - moment
