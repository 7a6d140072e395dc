"""Calls to the decoder tier."""

import asyncio
from collections.abc import AsyncGenerator, Iterable

import grpc

from gateway.deadline import Deadline
from gateway.outliers import failed
from gateway.replicas import (
    FAILED,
    GONE,
    RETRY_SECONDS,
    Contract,
    DecoderReplica,
    is_cancelled,
)
from gateway.retry_budget import RetryBudget
from gateway.routing import rendezvous, with_bounded_load
from gateway.tiers import under
from pixtral.v1 import chat_pb2, decoder_pb2
from serving.call import current_span, outgoing
from serving.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ServingError,
    Unavailable,
    from_rpc_error,
)

# An answer survives three decoders; one that brings decoders down brings down no more.
MAX_ATTEMPTS = 4

EMBEDDING_MISSING = "EMBEDDING_MISSING"

# What picks the next token by nothing but the tokens before it, wherever the prompt ends.
CONTINUED = frozenset(
    {
        "max_tokens",
        "min_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "stop",
        "stop_token_ids",
        "ignore_eos",
        "logit_bias",
        "allowed_token_ids",
    }
)
# The same, where they have these values.
IDLE = {"n": 1, "seed": -1, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class Decoders:
    """Sends requests that begin alike to the same replica, for the keys and values it holds."""

    def __init__(self, replicas: Iterable[DecoderReplica], budget: RetryBudget) -> None:
        self._replicas = replicas
        self._budget = budget

    async def generate(
        self,
        request: decoder_pb2.GenerateRequest,
        head: bytes,
        contract: Contract,
        deadline: Deadline,
    ) -> AsyncGenerator[decoder_pb2.GenerateResponse]:
        """Streams what a replica generates. Another is asked where one is full, and where one goes,
        hangs or fails: from the beginning, or to go on with the answer from where it broke off.

        `head` stands for the prompt's beginning. `request` takes up what was generated when it is
        sent again. Raises Unavailable where no replica answers or one goes midway in an answer that
        cannot be continued, Overloaded where those that answer are full, FailedPrecondition with
        reason EMBEDDING_MISSING, and whatever else the decoder refuses with. Closing the generator
        cancels the call, and with it the work in the engine.
        """
        unfinished = answers = answers_of(request.sampling)
        is_continued = can_be_continued(request.sampling)
        is_midway = bool(request.generated_token_ids)
        tried: set[str] = set()
        failure: ServingError | None = None
        request_id = request.request_id
        self._budget.earn()
        for attempt in range(1, MAX_ATTEMPTS + 1):
            replica = self._choose(head, contract, tried)
            if replica is None:
                break
            # Of its own: a decoder that hung may still hold the last one.
            request.request_id = f"{request_id}-{attempt}"
            seconds = deadline.remaining()
            span = current_span().child(
                "generate", is_call=True, peer=replica.address, attempt=attempt
            )
            call = replica.stub.Generate(request, timeout=seconds, metadata=outgoing(span))
            made: list[int] = []
            has_begun = False
            try:
                with replica.serving(call, answers), span:
                    async for response in call:
                        replica.responses += 1
                        has_begun = True
                        if is_continued:
                            made.extend(response.delta.token_ids)
                        if response.delta.finish_reason:
                            unfinished -= 1
                        yield response
                replica.record.failures = 0
                return
            except grpc.aio.AioRpcError as error:
                refusal = _refusal(error)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                refusal = _gone("the decoder hangs")
            if not unfinished:
                # The answer was whole; its status alone was lost.
                return
            is_midway = is_midway or has_begun
            if isinstance(refusal, Overloaded) and not has_begun:
                # With other gateways' requests. It was quick, and did no work: no retry is spent.
                tried.add(replica.address)
                failure = refusal
                continue
            if _is_gone(refusal):
                failed(replica, self._replicas)
                replica.lost()
            elif refusal.code in FAILED:
                failed(replica, self._replicas)
                tried.add(replica.address)
            elif is_midway and not _is_for_the_caller(refusal):
                break
            else:
                raise refusal
            failure = None if _is_gone(refusal) else refusal
            if is_midway and not is_continued:
                break
            request.generated_token_ids.extend(made)
            if not self._budget.spend(midway=is_midway):
                break
        if is_midway:
            raise _gone("the decoder went away midway")
        raise failure or _gone("no decoder answers")

    def _choose(self, head: bytes, contract: Contract, tried: set[str]) -> DecoderReplica | None:
        ready = under(self._replicas, contract)
        preference = [address for address in rendezvous(head, ready) if address not in tried]
        if not preference:
            return None
        load = {address: replica.outstanding for address, replica in ready.items()}
        return ready[with_bounded_load(preference, load)]


def answers_of(sampling: chat_pb2.SamplingParams) -> int:
    """What a request takes of every limit: each of its answers runs as a request of its own."""
    return sampling.n or 1


def can_be_continued(sampling: chat_pb2.SamplingParams) -> bool:
    """Whether another decoder can go on with an answer as the one that began it would have.

    Not where the next token depends on what lies in the engine alone: the state of a grammar, of a
    seeded generator, or which tokens are the answer's own, for penalties that count these.
    """
    for field, value in sampling.ListFields():
        is_greedy = (
            field.name == "seed"
            and sampling.HasField("temperature")
            and (sampling.temperature == 0)
        )
        if field.name not in CONTINUED and not is_greedy and IDLE.get(field.name) != value:
            return False
    return True


def _refusal(error: grpc.aio.AioRpcError) -> ServingError:
    refusal = from_rpc_error(error)
    if not isinstance(refusal, InvalidRequest):
        return refusal
    # A decoder names the fields of its own request; the client's has only the sampling in common.
    field, description = (*refusal.violations, ("", "the model does not take the prompt"))[0]
    path = field if field.startswith("sampling.") else "messages"
    return InvalidRequest(path, description, refusal.reason)


def _is_gone(refusal: ServingError) -> bool:
    # A replica restarted with other weights refuses the keys.
    is_other = refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    return refusal.code in GONE or (is_other and refusal.reason != EMBEDDING_MISSING)


def _is_for_the_caller(refusal: ServingError) -> bool:
    # Whatever else a continuation is refused for, it is nothing that the client has asked for.
    return isinstance(refusal, DeadlineExceeded) or refusal.reason == EMBEDDING_MISSING


def _gone(message: str) -> ServingError:
    return Unavailable(message, RETRY_SECONDS)
