"""The servicer of the encoder: protobuf in, protobuf out."""
# ruff: noqa: N802 - methods have the names of the proto

import math
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

from pixtral.internal.v1 import encoder_pb2, encoder_pb2_grpc
from pixtral_core.cache.embedding_key import BadKey, EmbeddingKey, from_proto
from pixtral_core.cache.wire_format import DType
from pixtral_core.errors import InvalidRequest, NotFound
from pixtral_core.telemetry.request_log import note
from pixtral_encoder.encoder import Encoder, Source

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# A message must stay under 1 MiB, so a piece leaves space for the rest of its message.
PIECE_BYTES = 1000 << 10

SOURCES = {
    Source.LOCAL: encoder_pb2.EMBEDDING_SOURCE_LOCAL,
    Source.REDIS: encoder_pb2.EMBEDDING_SOURCE_REDIS,
    Source.ENCODED: encoder_pb2.EMBEDDING_SOURCE_ENCODED,
}


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """The facts that a gateway compares with a decoder's before it pairs the two."""

    model: str
    fingerprint: str
    width: int
    dtype: DType
    device: str


class EncoderService(encoder_pb2_grpc.EncoderServiceServicer):
    """The methods of the encoder. `encoder` and `info` are set when the model is loaded; the server
    accepts no RPC before that."""

    encoder: Encoder
    info: EncoderInfo
    _responses = 0

    async def Encode(
        self, request: encoder_pb2.EncodeRequest, context: Context
    ) -> encoder_pb2.EncodeResponse:
        remaining = context.time_remaining()
        deadline = math.inf if remaining is None else time.monotonic() + remaining
        result = await self.encoder.encode(_key(request.key), request.image, deadline)
        self._responses += 1
        return encoder_pb2.EncodeResponse(
            rows=result.grid.rows,
            cols=result.grid.cols,
            source=SOURCES[result.source],
            stored=result.stored,
        )

    async def Fetch(
        self, request: encoder_pb2.FetchRequest, context: Context
    ) -> AsyncGenerator[encoder_pb2.FetchResponse]:
        value = self.encoder.held(_key(request.key))
        if value is None:
            raise NotFound("this encoder does not have the embedding", "EMBEDDING_NOT_FOUND")
        note(bytes=len(value))
        view = memoryview(value)
        for begin in range(0, len(view), PIECE_BYTES):
            yield encoder_pb2.FetchResponse(data=bytes(view[begin : begin + PIECE_BYTES]))

    async def GetEncoderInfo(
        self, request: encoder_pb2.GetEncoderInfoRequest, context: Context
    ) -> encoder_pb2.GetEncoderInfoResponse:
        info = self.info
        return encoder_pb2.GetEncoderInfoResponse(
            model=info.model,
            fingerprint=info.fingerprint,
            width=info.width,
            dtype=info.dtype,
            device=info.device,
            responses=self._responses,
        )


def _key(message: encoder_pb2.EmbeddingKey) -> EmbeddingKey:
    try:
        return from_proto(message)
    except BadKey as error:
        # The text of a BadKey contains nothing from the request, so a client may see it.
        raise InvalidRequest("key", str(error)) from None
