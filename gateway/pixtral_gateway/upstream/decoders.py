"""RPCs to the decoder tier."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import grpc

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2
from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.cache.embedding_key import to_proto as key_to_proto
from pixtral_core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ServingError,
    Unavailable,
    from_rpc_error,
)
from pixtral_core.generation import logprobs
from pixtral_core.generation.sampling import to_proto as sampling_to_proto
from pixtral_core.telemetry.request_log import current_span, outgoing
from pixtral_gateway.prompt.prompt_encoder import Prompt
from pixtral_gateway.request import Delta, FinishReason, Request
from pixtral_gateway.upstream.decoder_work import Blocks, blocks_of
from pixtral_gateway.upstream.ejection import failed
from pixtral_gateway.upstream.encoders import Encoded
from pixtral_gateway.upstream.placement import by_work, rendezvous
from pixtral_gateway.upstream.registry import under
from pixtral_gateway.upstream.replica import (
    FAILED,
    GONE,
    RETRY_SECONDS,
    Contract,
    DecoderReplica,
    is_cancelled,
)
from pixtral_gateway.upstream.resume import Progress
from pixtral_gateway.upstream.retry_budget import RetryBudget

# A completion survives the loss of three decoders, and a request that kills decoders kills at most
# four.
MAX_ATTEMPTS = 4

EMBEDDING_MISSING = "EMBEDDING_MISSING"

FINISH_REASONS: dict[int, FinishReason] = {
    chat_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    chat_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    chat_pb2.FINISH_REASON_TOOL_CALLS: FinishReason.TOOL_CALLS,
}


@dataclass(frozen=True, slots=True)
class Generation:
    """A request with all facts that a decoder needs.

    `keys` name the embeddings of the prompt's images, in the prompt's order; `located` has the
    encoder of each embedding. `head` identifies the prompt's beginning.
    """

    request: Request
    prompt: Prompt
    keys: Sequence[EmbeddingKey]
    located: Mapping[EmbeddingKey, Encoded]
    head: bytes
    contract: Contract


# Encodes images again, by their indexes, and returns the encoders of the new embeddings.
EncodeAgain = Callable[[Sequence[int]], Awaitable[Mapping[EmbeddingKey, Encoded]]]


class Decoders:
    """Sends a request to the replica that would compute its prompt first."""

    def __init__(self, replicas: Iterable[DecoderReplica], budget: RetryBudget) -> None:
        self._replicas = replicas
        self._budget = budget

    async def generate(
        self, generation: Generation, encode_again: EncodeAgain
    ) -> AsyncGenerator[Delta]:
        """Streams what a replica generates.

        When a replica is full, goes away, hangs or fails, the request goes to another: from the
        beginning, or from where the completion broke off. When a replica cannot get an embedding,
        this method calls `encode_again` once.

        Raises Unavailable when no replica answers, when a replica goes away in the middle of a
        completion that cannot be continued, and when an embedding is missing again. Raises
        Overloaded when all replicas that answer are full, and the other errors of a decoder as they
        are. Closing the generator cancels the RPC, and with it the work in the engine.
        """
        sampling, deadline = generation.request.sampling, generation.request.deadline
        message, blocks = _generate_request(generation), _blocks(generation)
        has_logprobs = sampling.logprobs is not None or sampling.prompt_logprobs is not None
        progress, has_encoded_again = Progress(sampling), False
        passed_over: set[str] = set()
        # The replicas that went away during this request. They get the request again only if no
        # other replica is ready.
        left: set[str] = set()
        failure: ServingError | None = None
        self._budget.earn()
        attempts, numbers = 0, count(1)
        while attempts < MAX_ATTEMPTS:
            tokens = len(message.prompt_token_ids) + len(message.generated_token_ids)
            replica = self._choose(generation, blocks, tokens, passed_over, left)
            if replica is None:
                break
            message.new_tokens = replica.work.new_tokens(blocks, tokens)
            attempts += 1
            number = next(numbers)
            # Each attempt has its own id, because a decoder that hangs may still run the previous
            # attempt.
            message.request_id = f"{generation.request.id}-{number}"
            span = current_span().child(
                "generate", is_call=True, peer=replica.address, attempt=number
            )
            call = replica.stub.Generate(
                message, timeout=deadline.remaining(), metadata=outgoing(span)
            )
            try:
                with (
                    replica.work.sent(blocks, tokens, sampling.n) as prompt,
                    replica.serving(call, sampling.n) as work,
                    span,
                ):
                    async for response in call:
                        replica.responses += 1
                        if not prompt.has_begun:
                            prompt.begin(response.cached_tokens)
                            if response.HasField("load"):
                                replica.hear_load(response.load)
                        delta = (
                            _full_delta(response)
                            if has_logprobs or not progress.has_begun
                            else _delta(response.delta)
                        )
                        progress.add(delta)
                        work.is_awaited = False
                        yield delta
                        work.is_awaited = True
                replica.record.failures = 0
                return
            except grpc.aio.AioRpcError as error:
                refusal = _refusal(error)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                refusal = _gone("the decoder hangs")
            if progress.is_whole:
                # The answer is complete, and only the status was lost.
                return
            if isinstance(refusal, Overloaded):
                # Requests of other gateways fill the decoder. It did no work for this one, so this
                # attempt spends no retry.
                passed_over.add(replica.address)
                failure = None if progress.has_begun else refusal
                continue
            if refusal.reason == EMBEDDING_MISSING:
                if has_encoded_again:
                    raise Unavailable("no tier has an image's embedding") from refusal
                has_encoded_again, attempts = True, 0
                located = await encode_again(_missing(refusal, len(generation.keys)))
                for image, key in zip(message.images, generation.keys, strict=True):
                    if key in located:
                        image.encoder = located[key].encoder
                continue
            if _is_gone(refusal):
                failed(replica, self._replicas)
                replica.lost()
                left.add(replica.address)
                failure = None
            elif refusal.code in FAILED:
                failed(replica, self._replicas)
                passed_over.add(replica.address)
                failure = refusal
            elif message.generated_token_ids and not isinstance(refusal, DeadlineExceeded):
                # The decoder refuses only the continuation, for fields that the client did not
                # send.
                failure = None
                break
            else:
                raise refusal
            if not (progress.resume() and self._budget.spend(midway=progress.has_begun)):
                break
            message.generated_token_ids[:] = progress.made
        gone = "the decoder went away midway" if progress.has_begun else "no decoder answers"
        raise failure or _gone(gone)

    def _choose(
        self,
        generation: Generation,
        blocks: Blocks,
        tokens: int,
        passed_over: set[str],
        left: set[str],
    ) -> DecoderReplica | None:
        adapter = generation.request.adapter
        ready = under((r for r in self._replicas if r.has(adapter)), generation.contract)
        preferred = rendezvous(generation.head, ready)
        preference = [address for address in preferred if address not in passed_over]
        preference = [address for address in preference if address not in left] or preference
        if not preference:
            return None
        works = {address: replica.work for address, replica in ready.items()}
        # An image was shown earlier if a cache has its embedding.
        located = generation.located.values()
        is_known = bool(located) and all(each.cached for each in located)
        return ready[by_work(preference, works, blocks, tokens, is_known=is_known)]


def _blocks(generation: Generation) -> Blocks:
    request, prompt = generation.request, generation.prompt
    if request.sampling.prompt_logprobs is not None:
        # The engine computes such a prompt as a whole, and uses no computed blocks.
        return ()
    digests = (key.digest for key in generation.keys)
    images = zip((placed.offset for placed in prompt.images), digests, strict=True)
    return blocks_of(prompt.token_ids, images, (request.tenant.name, request.adapter))


def _generate_request(generation: Generation) -> decoder_pb2.GenerateRequest:
    request, prompt = generation.request, generation.prompt
    return decoder_pb2.GenerateRequest(
        prompt_token_ids=prompt.token_ids,
        images=[
            decoder_pb2.PromptImage(
                key=key_to_proto(key),
                offset=placed.offset,
                rows=placed.rows,
                cols=placed.cols,
                encoder=generation.located[key].encoder,
            )
            for key, placed in zip(generation.keys, prompt.images, strict=True)
        ],
        sampling=sampling_to_proto(request.sampling),
        cache_salt=request.tenant.name,
        priority=request.priority,
        adapter=request.adapter,
    )


def _delta(choice: chat_pb2.Choice) -> Delta:
    """The common kind of delta. It reads few fields, because every token takes this path."""
    reason = choice.finish_reason
    if not reason:
        return Delta(choice.index, choice.text, choice.token_ids)
    stopped = choice.WhichOneof("stop_reason")
    return Delta(
        choice.index,
        choice.text,
        choice.token_ids,
        FINISH_REASONS.get(reason),
        stop_reason=None if stopped is None else getattr(choice, stopped),
    )


def _full_delta(response: decoder_pb2.GenerateResponse) -> Delta:
    """A delta with log-probabilities, or the first of an answer."""
    return replace(
        _delta(response.delta),
        logprobs=tuple(map(logprobs.from_proto, response.delta.logprobs)),
        prompt_logprobs=tuple(map(logprobs.from_proto, response.prompt_logprobs)),
        cached_tokens=response.cached_tokens,
        queue=response.queue.ToNanoseconds() / 1e9,
    )


def _missing(error: ServingError, images: int) -> list[int]:
    """Indexes of the images whose embeddings a decoder could not get."""
    named = error.metadata.get("images", "").split(",")
    indexes = [int(index) for index in named if index.isdecimal()]
    if not indexes or max(indexes) >= images:
        raise RuntimeError("a decoder reports images as missing that the request does not have")
    return indexes


def _refusal(error: grpc.aio.AioRpcError) -> ServingError:
    refusal = from_rpc_error(error)
    if not isinstance(refusal, InvalidRequest):
        return refusal
    # A decoder names the fields of its own request. The client's request has only some of them.
    field, description = (*refusal.violations, ("", "the model does not take the prompt"))[0]
    path = field if field == "priority" or field.startswith("sampling.") else "messages"
    return InvalidRequest(path, description, refusal.reason)


def _is_gone(refusal: ServingError) -> bool:
    # A replica that restarted with other weights refuses the keys, and one that restarted with
    # other adapters refuses the name.
    is_other = refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    return refusal.code in GONE or (is_other and refusal.reason != EMBEDDING_MISSING)


def _gone(message: str) -> ServingError:
    return Unavailable(message, RETRY_SECONDS)
