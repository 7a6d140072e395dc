"""The path of a request, from admission to its last token, top to bottom."""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from sys import getsizeof
from typing import cast

from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.cache.embedding_store import EmbeddingStore
from pixtral_core.errors import DeadlineExceeded, InvalidRequest, ServingError
from pixtral_core.generation.logprobs import TokenLogprobs
from pixtral_core.generation.sampling import Sampling
from pixtral_core.telemetry.request_log import current_span, first_token, note
from pixtral_gateway.checks.conversation import NO_TOOLS, Conversation, ImageSource, Role
from pixtral_gateway.checks.validation import (
    check_characters,
    check_gathered,
    check_gathered_logprobs,
    fitted,
)
from pixtral_gateway.images.image_reader import ImageInput
from pixtral_gateway.images.request_images import RequestImages
from pixtral_gateway.metrics import IMAGES, REQUESTS, TIME_TO_FIRST_TOKEN
from pixtral_gateway.prompt.prompt_encoder import Prompt, PromptEncoder
from pixtral_gateway.prompt.tool_format import AnswerReader
from pixtral_gateway.request import (
    Begun,
    Delta,
    Event,
    Finished,
    FinishReason,
    ImageReport,
    RawPrompt,
    Request,
    Timings,
    Usage,
)
from pixtral_gateway.stream_buffer import StreamBuffer
from pixtral_gateway.tenancy.admission import Admission, Permit
from pixtral_gateway.tenancy.tenants import Tenant
from pixtral_gateway.upstream.decoders import Decoders, Generation
from pixtral_gateway.upstream.embeddings import EmbeddingLocator, any_encoded, image_facts
from pixtral_gateway.upstream.encoders import Encoded, Encoders
from pixtral_gateway.upstream.registry import Tiers
from pixtral_gateway.upstream.replica import Contract
from pixtral_gateway.upstream.retry_budget import RetryBudget

# The memory of a prompt's token, in this process and in the message to the decoder together.
TOKEN_BYTES = 8
# The memory of a delta and of a log-probability that the APIs gather.
DELTA_BYTES = 64
LOGPROB_BYTES = 128

# All tiers end their work at the deadline. A request that still runs this long after its deadline
# waits for a client that has stopped reading.
GRACE_SECONDS = 1.0
# Prompts that begin with this many equal tokens can share keys and values.
HEAD_TOKENS = 64


class Pipeline:
    """Answers requests. One pipeline serves all requests of the process at once."""

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
        """`most_retries` bounds the retries that run at once in each tier; see RetryBudget."""
        self._images = images
        self._prompts = prompts
        self._tiers = tiers
        self._embeddings = EmbeddingLocator(
            store, images, Encoders(tiers.encoders, RetryBudget("encoder", most_retries))
        )
        self._decoders = Decoders(tiers.decoders, RetryBudget("decoder", most_retries))
        self._admission = admission

    async def stream(self, request: Request) -> AsyncGenerator[Event]:
        """Streams `Begun`, the deltas of all choices as they arrive, and `Finished`.

        Raises ServingError. Closing the generator stops the work in every tier and frees the
        permit. A task that stops taking events is cancelled soon after the deadline.
        """
        with (
            _counted(request),
            self._admission.permit(
                request.tenant, len(request.conversation.images), request.sampling.n
            ) as permit,
        ):
            sampling = self._constrained(request)
            contract = self._tiers.contract(request.adapter)
            images, prompt = await self._read(
                request.conversation, request.tenant, contract, permit
            )
            request.tenant.use("prompt", len(prompt.token_ids))
            yield Begun(prompt.token_ids)
            sampling = fitted(sampling, len(prompt.token_ids), self._tiers.context_length)
            if request.is_gathered:
                check_gathered(sampling)

            answer = self._answer_reader(request, prompt)
            completion = _Completion(request, prompt, images, contract)
            sources = [request.conversation.images[placed.index] for placed in prompt.images]
            with completion.encoding():
                completion.located |= await self._embeddings.find(
                    completion.wanted, contract, request.deadline
                )

            async def encode_again(indexes: Sequence[int]) -> Mapping[EmbeddingKey, Encoded]:
                keys = [completion.keys[index] for index in indexes]
                missing = {key: completion.wanted[key] for key in keys}
                with completion.encoding():
                    again = await self._embeddings.encode(missing, contract, request.deadline)
                    completion.located |= again
                return again

            generation = Generation(
                replace(request, sampling=sampling),
                prompt,
                completion.keys,
                completion.located,
                _head(request, images, prompt),
                contract,
            )
            deltas = StreamBuffer(self._decoders.generate(generation, encode_again))
            try:
                async with aclosing(deltas):
                    async for delta in deltas:
                        if not completion.has_begun:
                            completion.begin(delta)
                            self._images.keep(sources, images, request.tenant)
                        if request.is_gathered or delta.prompt_logprobs:
                            permit.hold(completion.keep(delta))
                        if answer is not None:
                            delta = answer.read(delta)
                        if completion.add(delta):
                            yield delta
            except InvalidRequest as error:
                raise (error if answer is None else answer.error(error)) from None
            finally:
                completion.end()
            yield completion.finished(0 if answer is None else answer.reasoning_tokens)

    async def count(self, conversation: Conversation, tenant: Tenant) -> Prompt:
        """The prompt of a conversation. Raises InvalidRequest and Overloaded."""
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

    async def detokenize(self, token_ids: Sequence[int], tenant: Tenant) -> str:
        """The text of token ids, control tokens by their names. Raises InvalidRequest and
        Overloaded.
        """
        with self._admission.permit(tenant, 0):
            return await self._prompts.detokenize(token_ids)

    async def _read(
        self,
        conversation: Conversation | RawPrompt,
        tenant: Tenant,
        contract: Contract | None,
        permit: Permit,
    ) -> tuple[list[ImageInput], Prompt]:
        if isinstance(conversation, RawPrompt):
            return [], await self._raw(conversation)
        permit.reserve(conversation.image_bytes)
        check_characters(
            conversation.characters,
            "messages",
            self._prompts.longest_token,
            self._tiers.context_length,
        )
        permit.hold(conversation.text_bytes)
        has_images = bool(conversation.images)
        if has_images:
            # No image is fetched or encoded for messages that are refused.
            await self._prompts.check(conversation)
        with current_span().child("images", images=len(conversation.images)):
            images = await self._images.read_all(
                conversation.images, tenant, None if contract is None else contract.fingerprint
            )
        # `image_bytes` counts the URLs themselves. The files that came from the URLs count here.
        sources = zip(images, conversation.images, strict=True)
        permit.reserve(sum(len(image.data) for image, source in sources if source.url))
        with current_span().child("prompt"):
            grids = [image.grid for image in images]
            prompt = await self._prompts.encode(conversation, grids, is_checked=has_images)
        permit.hold(TOKEN_BYTES * len(prompt.token_ids))
        note(images=len(images), prompt_tokens=len(prompt.token_ids))
        return [images[placed.index] for placed in prompt.images], prompt

    async def _raw(self, raw: RawPrompt) -> Prompt:
        token_ids: Sequence[int] = raw.token_ids
        if raw.text or not token_ids:
            check_characters(
                len(raw.text), "prompt", self._prompts.longest_token, self._tiers.context_length
            )
            token_ids = await self._prompts.tokenize(raw.text, bos=raw.bos)
        note(images=0, prompt_tokens=len(token_ids))
        return Prompt(token_ids, (), 0)

    def _constrained(self, request: Request) -> Sampling:
        """The sampling parameters with the structure that forced tool calls follow."""
        return self._prompts.tools.constrain(request.conversation.tools, request.sampling)

    def _answer_reader(self, request: Request, prompt: Prompt) -> AnswerReader | None:
        """A parser of tool calls and thoughts, or None if the answer can have neither."""
        conversation, tool_format = request.conversation, self._prompts.tools
        if isinstance(conversation, RawPrompt):
            return None
        tools = conversation.tools
        if not tools.forced and request.sampling.structured_output is not None:
            tools = NO_TOOLS
        if not tools.offered and not tool_format.thinks:
            return None
        is_thinking = conversation.goes_on and tool_format.ends_within_thought(prompt.token_ids)
        return tool_format.reader(tools, is_thinking=is_thinking)


class _Completion:
    """Facts of one completion, for its report, metrics, log line and tenant.

    Attributes:
        keys: keys of the images' embeddings, in the order of the prompt.
        wanted: the image of each key.
        located: the encoder that has each embedding.
    """

    def __init__(
        self, request: Request, prompt: Prompt, images: Sequence[ImageInput], contract: Contract
    ) -> None:
        scope = request.tenant.name
        self.keys = [
            EmbeddingKey(image.sha256, contract.fingerprint, scope, image.low_detail)
            for image in images
        ]
        self.wanted = dict(zip(self.keys, images, strict=True))
        self.located: dict[EmbeddingKey, Encoded] = {}
        self.has_begun = False
        self._request = request
        self._prompt = prompt
        self._images = images
        self._prompt_logprobs: list[TokenLogprobs] = []
        self._queue = self._encode = self._time_to_first = 0.0
        self._cached_tokens = self._tokens = self._gathered_logprobs = 0
        # The finish reason of each choice that has ended, by its index.
        self._finish_reasons: dict[int, FinishReason] = {}

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Counts the time of the block as a wait for encoders, if any image was encoded."""
        began = time.monotonic()
        yield
        if any_encoded(self.located):
            self._encode += time.monotonic() - began
        note(**image_facts([self.located[key] for key in self.keys], self._encode))

    def begin(self, delta: Delta) -> None:
        """Takes the first delta. `cached_tokens` and `queue` of a later decoder are not counted."""
        self.has_begun = True
        self._time_to_first = time.monotonic() - self._request.arrival
        self._cached_tokens, self._queue = delta.cached_tokens, delta.queue
        first_token()
        images = "none"
        if self.located:
            images = "encoded" if any_encoded(self.located) else "cached"
        TIME_TO_FIRST_TOKEN.labels(images).observe(self._time_to_first)

    def add(self, delta: Delta) -> bool:
        """Counts the delta. Returns whether the client gets it: a delta with only the prompt's
        log-probabilities has nothing for the client."""
        self._tokens += len(delta.token_ids)
        if delta.finish_reason is not None:
            self._finish_reasons[delta.index] = delta.finish_reason
        if not delta.prompt_logprobs:
            return True
        self._prompt_logprobs.extend(delta.prompt_logprobs)
        return bool(delta.token_ids or delta.finish_reason)

    def keep(self, delta: Delta) -> int:
        """The memory that the delta takes until the answer's end. Raises InvalidRequest if there
        are too many log-probabilities."""
        logprobs = sum(1 + len(each.top) for each in delta.prompt_logprobs)
        if not self._request.is_gathered:
            return LOGPROB_BYTES * logprobs
        gathered = sum(1 + len(each.top) for each in delta.logprobs)
        self._gathered_logprobs += gathered
        check_gathered_logprobs(self._gathered_logprobs)
        return DELTA_BYTES + getsizeof(delta.text) + LOGPROB_BYTES * (logprobs + gathered)

    def end(self) -> None:
        self._request.tenant.use("completion", self._tokens)
        note(cached_tokens=self._cached_tokens, completion_tokens=self._tokens)
        if self._finish_reasons:
            reasons = [reason.value for _, reason in sorted(self._finish_reasons.items())]
            note(finish_reason=",".join(reasons))

    def finished(self, reasoning_tokens: int) -> Finished:
        prompt = self._prompt
        return Finished(
            Usage(
                len(prompt.token_ids),
                prompt.image_tokens,
                self._cached_tokens,
                self._tokens,
                reasoning_tokens,
            ),
            Timings(
                self._queue,
                self._encode,
                self._time_to_first,
                time.monotonic() - self._request.arrival,
            ),
            self._report(),
            self._prompt_logprobs,
        )

    def _report(self) -> tuple[ImageReport, ...]:
        located = [self.located[key] for key in self.keys]
        for each in located:
            IMAGES.labels("cached" if each.cached else "encoded").inc()
        return tuple(
            ImageReport(
                image.sha256.hex(),
                image.width,
                image.height,
                placed.length,
                each.cached,
                each.seconds,
            )
            for image, placed, each in zip(self._images, self._prompt.images, located, strict=True)
        )


@contextmanager
def _counted(request: Request) -> Iterator[None]:
    """Counts the request by its code, and cancels its task GRACE_SECONDS after its deadline."""
    code = "OK"
    overdue = _cancel_task(request.deadline.remaining() + GRACE_SECONDS)
    try:
        yield
    except ServingError as error:
        code = error.code.name
        raise
    except (asyncio.CancelledError, GeneratorExit):
        code = "DEADLINE_EXCEEDED" if _is_late(request) else "CANCELLED"
        raise
    except Exception:
        code = "INTERNAL"
        raise
    finally:
        overdue.cancel()
        REQUESTS.labels(code).inc()


def _cancel_task(seconds: float) -> asyncio.TimerHandle:
    task = cast("asyncio.Task[None]", asyncio.current_task())
    return asyncio.get_running_loop().call_later(seconds, task.cancel, DeadlineExceeded())


def _is_late(request: Request) -> bool:
    # A client's deadline that passes arrives here as the client's cancel, a little early: the value
    # that the client sends is rounded up by as much as a hundredth.
    granted = request.deadline.at - request.arrival
    return time.monotonic() >= request.deadline.at - 0.05 - granted / 100


def _head(request: Request, images: Sequence[ImageInput], prompt: Prompt) -> bytes:
    """A digest of a prompt's beginning: adapter, tools, system messages and the next message, or
    the first image in place of the message that has it.

    The digest is equal for all turns of a conversation, and for all questions about one image. For
    a raw prompt it covers the adapter and the first tokens.
    """
    conversation = request.conversation
    digest = hashlib.sha256(request.adapter.encode())
    if isinstance(conversation, RawPrompt):
        digest.update(repr(list(prompt.token_ids[:HEAD_TOKENS])).encode())
        return digest.digest()
    if conversation.tools.offered:
        digest.update(repr(conversation.tools.offered).encode())
    for turn in conversation.turns:
        if any(isinstance(part, ImageSource) for part in turn.parts):
            digest.update(images[0].sha256)
        else:
            digest.update(repr(turn.parts).encode())
        if turn.role is not Role.SYSTEM:
            break
    return digest.digest()
