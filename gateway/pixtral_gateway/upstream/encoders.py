"""RPCs to the encoder tier."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

import grpc

from pixtral.internal.v1 import encoder_pb2
from pixtral_core.cache.embedding_key import EmbeddingKey, to_proto
from pixtral_core.concurrency.deadline import Deadline
from pixtral_core.errors import InvalidRequest, ServingError, Unavailable, from_rpc_error
from pixtral_core.telemetry.request_log import current_span, outgoing
from pixtral_gateway.images.image_reader import ImageInput
from pixtral_gateway.upstream.ejection import failed
from pixtral_gateway.upstream.placement import rendezvous
from pixtral_gateway.upstream.registry import under
from pixtral_gateway.upstream.replica import (
    FAILED,
    GONE,
    RETRY_SECONDS,
    Contract,
    EncoderReplica,
    is_cancelled,
)
from pixtral_gateway.upstream.retry_budget import RetryBudget

# An image that kills encoders must not kill all of them.
MAX_ATTEMPTS = 3

# A replica that restarted with other weights refuses the key.
RETRIED = GONE | FAILED | {grpc.StatusCode.FAILED_PRECONDITION}


@dataclass(frozen=True, slots=True)
class Encoded:
    """`encoder` is the address of the replica that has the embedding now, and `seconds` the wait
    for it."""

    encoder: str
    cached: bool
    seconds: float = 0.0


class Encoders:
    """Sends an image to the replica that its key names, so that no two replicas encode the same
    image."""

    def __init__(self, replicas: Iterable[EncoderReplica], budget: RetryBudget) -> None:
        self._replicas = replicas
        self._budget = budget

    def owner(self, key: EmbeddingKey, contract: Contract) -> str:
        """Address of the replica that a key names; empty while there is none."""
        preference = rendezvous(key.image_sha256, under(self._replicas, contract))
        return preference[0] if preference else ""

    async def encode(
        self, image: ImageInput, key: EmbeddingKey, contract: Contract, deadline: Deadline
    ) -> Encoded:
        """Encodes the image, unless a cache of the encoder has its embedding.

        Raises InvalidRequest with the image's field if it cannot be decoded, Unavailable if no
        replica answers, and the other errors of an encoder as they are.
        """
        began = time.monotonic()
        request = encoder_pb2.EncodeRequest(key=to_proto(key), image=image.data)
        replicas = under(self._replicas, contract)
        preference = rendezvous(key.image_sha256, replicas)[:MAX_ATTEMPTS]
        failure: ServingError = Unavailable(
            "no encoder is ready for an image that is not cached", RETRY_SECONDS
        )
        self._budget.earn()
        for attempt, address in enumerate(preference, 1):
            if attempt > 1 and not self._budget.spend():
                break
            replica = replicas[address]
            span = current_span().child("encode", is_call=True, peer=address, attempt=attempt)
            seconds = deadline.remaining()
            call = replica.stub.Encode(request, timeout=seconds, metadata=outgoing(span))
            try:
                with replica.serving(call), span:
                    response = await call
            except grpc.aio.AioRpcError as error:
                code = error.code()
                if code not in RETRIED:
                    raise _refusal(error, image) from None
                failed(replica, self._replicas)
                if code in FAILED:
                    failure = _refusal(error, image)
                else:
                    replica.lost()
                continue
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                continue
            replica.responses += 1
            replica.record.failures = 0
            if (response.rows, response.cols) != (image.grid.rows, image.grid.cols):
                raise InvalidRequest(
                    image.path, "the image's header and content disagree", "IMAGE_MALFORMED"
                )
            if response.source != encoder_pb2.EMBEDDING_SOURCE_ENCODED:
                return Encoded(address, cached=True)
            return Encoded(address, cached=False, seconds=time.monotonic() - began)
        raise failure


def _refusal(error: grpc.aio.AioRpcError, image: ImageInput) -> ServingError:
    refusal = from_rpc_error(error)
    if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
        return refusal
    description = refusal.violations[0][1] if refusal.violations else "the image is malformed"
    return InvalidRequest(image.path, description, refusal.reason)
