"""Calls to the decoder tier."""

import asyncio
from collections.abc import AsyncGenerator, Iterable

import grpc

from pixtral.internal.v1 import decoder_pb2
from pixtral_core.concurrency.deadline import Deadline
from pixtral_core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ServingError,
    Unavailable,
    from_rpc_error,
)
from pixtral_core.telemetry.request_log import current_span, outgoing
from pixtral_gateway.upstream.ejection import failed
from pixtral_gateway.upstream.placement import rendezvous, with_bounded_load
from pixtral_gateway.upstream.registry import under
from pixtral_gateway.upstream.replica import (
    FAILED,
    GONE,
    RETRY_SECONDS,
    Contract,
    DecoderReplica,
    is_cancelled,
)
from pixtral_gateway.upstream.resume import Progress, answers_of
from pixtral_gateway.upstream.retry_budget import RetryBudget

# An answer survives three decoders; one that brings decoders down brings down no more.
MAX_ATTEMPTS = 4

EMBEDDING_MISSING = "EMBEDDING_MISSING"


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
        progress = Progress(request)
        answers, request_id = answers_of(request.sampling), request.request_id
        passed_over: set[str] = set()
        failure: ServingError | None = None
        self._budget.earn()
        for attempt in range(1, MAX_ATTEMPTS + 1):
            replica = self._choose(head, contract, request.adapter, passed_over)
            if replica is None:
                break
            # Of its own: a decoder that hung may still hold the last one.
            request.request_id = f"{request_id}-{attempt}"
            seconds = deadline.remaining()
            span = current_span().child(
                "generate", is_call=True, peer=replica.address, attempt=attempt
            )
            call = replica.stub.Generate(request, timeout=seconds, metadata=outgoing(span))
            try:
                with replica.serving(call, answers) as work, span:
                    async for response in call:
                        replica.responses += 1
                        progress.add(response.delta)
                        work.is_awaited = False
                        yield response
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
                # Its status alone was lost.
                return
            if isinstance(refusal, Overloaded):
                # With other gateways' requests. It did no work, so that no retry is spent.
                passed_over.add(replica.address)
                failure = None if progress.has_begun else refusal
                continue
            if _is_gone(refusal):
                failed(replica, self._replicas)
                replica.lost()
                failure = None
            elif refusal.code in FAILED:
                failed(replica, self._replicas)
                passed_over.add(replica.address)
                failure = refusal
            elif progress.has_begun and not _is_for_the_caller(refusal):
                failure = None
                break
            else:
                raise refusal
            if not (progress.resume() and self._budget.spend(midway=progress.has_begun)):
                break
        gone = "the decoder went away midway" if progress.has_begun else "no decoder answers"
        raise failure or _gone(gone)

    def _choose(
        self, head: bytes, contract: Contract, adapter: str, passed_over: set[str]
    ) -> DecoderReplica | None:
        ready = under((r for r in self._replicas if r.has(adapter)), contract)
        preference = [address for address in rendezvous(head, ready) if address not in passed_over]
        if not preference:
            return None
        load = {address: replica.outstanding for address, replica in ready.items()}
        return ready[with_bounded_load(preference, load)]


def _refusal(error: grpc.aio.AioRpcError) -> ServingError:
    refusal = from_rpc_error(error)
    if not isinstance(refusal, InvalidRequest):
        return refusal
    # A decoder names the fields of its own request, of which the client's has few.
    field, description = (*refusal.violations, ("", "the model does not take the prompt"))[0]
    path = field if field == "priority" or field.startswith("sampling.") else "messages"
    return InvalidRequest(path, description, refusal.reason)


def _is_gone(refusal: ServingError) -> bool:
    # A replica restarted with other weights refuses the keys, and with other adapters the name.
    is_other = refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    return refusal.code in GONE or (is_other and refusal.reason != EMBEDDING_MISSING)


def _is_for_the_caller(refusal: ServingError) -> bool:
    # Whatever else a continuation is refused for, it is nothing that the client has asked for.
    return isinstance(refusal, DeadlineExceeded) or refusal.reason == EMBEDDING_MISSING


def _gone(message: str) -> ServingError:
    return Unavailable(message, RETRY_SECONDS)
