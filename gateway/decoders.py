"""Calls to the decoder tier."""

from collections.abc import AsyncGenerator, Iterable

import grpc

from gateway.deadline import Deadline
from gateway.routing import rendezvous, with_bounded_load
from gateway.tiers import GONE, RETRY_SECONDS, Contract, DecoderReplica, under
from pixtral.v1 import chat_pb2, decoder_pb2
from serving.call import current_span, outgoing
from serving.errors import InvalidRequest, Overloaded, ServingError, Unavailable, from_rpc_error

MAX_ATTEMPTS = 3

EMBEDDING_MISSING = "EMBEDDING_MISSING"


class Decoders:
    """Sends requests that begin alike to the same replica, for the keys and values it holds."""

    def __init__(self, replicas: Iterable[DecoderReplica]) -> None:
        self._replicas = replicas

    async def generate(
        self,
        request: decoder_pb2.GenerateRequest,
        head: bytes,
        contract: Contract,
        deadline: Deadline,
    ) -> AsyncGenerator[decoder_pb2.GenerateResponse]:
        """Streams what a replica generates; another is asked where one is full, or goes before it
        has begun.

        `head` stands for the prompt's beginning. Raises Unavailable where no replica answers or
        one goes midway, Overloaded where those that answer are full, FailedPrecondition with reason
        EMBEDDING_MISSING, and whatever else the decoder refuses with. Closing the generator cancels
        the call, and with it the work in the engine.
        """
        answers = answers_of(request.sampling)
        tried: set[str] = set()
        full: ServingError | None = None
        while len(tried) < MAX_ATTEMPTS:
            replica = self._choose(head, contract, tried)
            if replica is None:
                break
            tried.add(replica.address)
            has_begun = False
            seconds = deadline.remaining()
            span = current_span().child(
                "generate", is_call=True, peer=replica.address, attempt=len(tried)
            )
            call = replica.stub.Generate(request, timeout=seconds, metadata=outgoing(span))
            replica.outstanding += answers
            try:
                with span:
                    async for response in call:
                        has_begun = True
                        yield response
                return
            except grpc.aio.AioRpcError as error:
                refusal = _refusal(error)
                if isinstance(refusal, Overloaded) and not has_begun:
                    # With other gateways' requests, which this one's count of load leaves out.
                    full = refusal
                    continue
                if not _is_gone(refusal):
                    raise refusal from None
                replica.lost()
                if has_begun:
                    raise _gone("the decoder went away midway") from None
            finally:
                replica.outstanding -= answers
                call.cancel()
        raise full or _gone("no decoder answers")

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


def _gone(message: str) -> ServingError:
    return Unavailable(message, RETRY_SECONDS)
