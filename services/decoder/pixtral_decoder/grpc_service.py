"""The gRPC service of the decoder, which converts between protobuf and plain data."""
# ruff: noqa: N802 - methods have the names of the proto

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

from pixtral.internal.v1 import decoder_pb2, decoder_pb2_grpc
from pixtral.v1 import chat_pb2
from pixtral_core.cache.embedding_key import BadKey, from_proto
from pixtral_core.cache.wire_format import DType
from pixtral_core.errors import InvalidRequest
from pixtral_core.generation import logprobs, sampling
from pixtral_core.model.vision_spec import Grid
from pixtral_decoder.decoder import Decoder
from pixtral_decoder.engine.engine import Delta, FinishReason
from pixtral_decoder.request import ImagePlace, Prompt

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

FINISH_REASONS = {
    None: chat_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: chat_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: chat_pb2.FINISH_REASON_LENGTH,
}


@dataclass(frozen=True, slots=True)
class DecoderInfo:
    """The facts that a gateway needs about a decoder.

    The gateway compares some of them with an encoder's before it pairs the two, and chooses a
    replica by the others.
    """

    model: str
    fingerprint: str
    width: int
    dtype: DType
    context_length: int
    max_running: int
    adapters: tuple[str, ...] = ()


class DecoderService(decoder_pb2_grpc.DecoderServiceServicer):
    """The servicer. DecoderTier sets `decoder` and `info` at the end of its start, before any
    call."""

    decoder: Decoder
    info: DecoderInfo
    _responses = 0

    async def Generate(
        self, request: decoder_pb2.GenerateRequest, context: Context
    ) -> AsyncGenerator[decoder_pb2.GenerateResponse]:
        is_first = True
        async with aclosing(self.decoder.generate(_prompt(request))) as deltas:
            async for delta in deltas:
                response = _response(delta)
                if is_first:
                    response.cached_tokens = delta.cached_tokens
                    response.queue.FromNanoseconds(round(delta.queue_seconds * 1e9))
                    response.load.CopyFrom(self._load())
                    is_first = False
                self._responses += 1
                yield response

    async def GetDecoderInfo(
        self, request: decoder_pb2.GetDecoderInfoRequest, context: Context
    ) -> decoder_pb2.GetDecoderInfoResponse:
        info, queue = self.info, self.decoder.queue
        admitted = queue.admitted
        running = min(admitted, info.max_running)
        return decoder_pb2.GetDecoderInfoResponse(
            model=info.model,
            fingerprint=info.fingerprint,
            width=info.width,
            dtype=info.dtype,
            context_length=info.context_length,
            max_running=info.max_running,
            running=running,
            waiting=admitted - running,
            responses=self._responses,
            adapters=info.adapters,
            capacity=queue.capacity,
            load=self._load(),
        )

    def _load(self) -> decoder_pb2.DecoderLoad:
        decoder = self.decoder
        return decoder_pb2.DecoderLoad(
            new_tokens=decoder.work.tokens,
            answers=decoder.queue.admitted,
            tokens_per_second=decoder.work.tokens_per_second,
        )


def _prompt(request: decoder_pb2.GenerateRequest) -> Prompt:
    return Prompt(
        request_id=request.request_id,
        token_ids=list(request.prompt_token_ids),
        images=tuple(_image(index, image) for index, image in enumerate(request.images)),
        sampling=sampling.from_proto(request.sampling),
        cache_salt=request.cache_salt or None,
        generated=tuple(request.generated_token_ids),
        priority=request.priority,
        adapter=request.adapter,
        new_tokens=request.new_tokens if request.HasField("new_tokens") else None,
    )


def _image(index: int, image: decoder_pb2.PromptImage) -> ImagePlace:
    try:
        key = from_proto(image.key)
    except BadKey as error:
        # The message of BadKey has nothing from the request, so the client may see it.
        raise InvalidRequest(f"images[{index}].key", str(error)) from None
    return ImagePlace(key, image.offset, Grid(image.rows, image.cols), image.encoder)


def _response(delta: Delta) -> decoder_pb2.GenerateResponse:
    response = decoder_pb2.GenerateResponse(
        delta=chat_pb2.Choice(
            text=delta.text,
            token_ids=delta.token_ids,
            finish_reason=FINISH_REASONS[delta.finish_reason],
        )
    )
    # The fields below are set only if they are present: few deltas have them, and this code runs
    # for every token.
    match delta.stop_reason:
        case None:
            pass
        case str():
            response.delta.stop_string = delta.stop_reason
        case int():
            response.delta.stop_token_id = delta.stop_reason
    if delta.index:
        response.delta.index = delta.index
    if delta.logprobs:
        response.delta.logprobs.extend(map(logprobs.to_proto, delta.logprobs))
    if delta.prompt_logprobs:
        response.prompt_logprobs.extend(map(logprobs.to_proto, delta.prompt_logprobs))
    return response
