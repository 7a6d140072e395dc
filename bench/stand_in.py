"""An encoder and a decoder without a model, for measuring the gateway in front of them.

    python -m bench.stand_in --model-dir .cache/random-pixtral

The first token comes at once, and one more in each step, whose milliseconds are the request's
`seed`. As in an engine, all answers of one pace step together, and tokens that a slow reader has
not taken come as one delta. Encoding an image writes a few bytes to Redis.
"""
# ruff: noqa: N802 - methods have the names of the proto

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any, TypeAlias

import grpc

from pixtral.internal.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc
from pixtral.v1 import chat_pb2
from pixtral_core.cache.embedding_key import from_proto
from pixtral_core.cache.embedding_store import EmbeddingStore
from pixtral_core.cache.wire_format import DType
from pixtral_core.errors import NotFound
from pixtral_core.image.header import read_header
from pixtral_core.model.vision_spec import VisionSpec, read_params
from pixtral_core.server.process import run
from pixtral_core.settings import ModelSettings, RedisSettings, load

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

MODEL = "stand-in"
FINGERPRINT = "5745"
CONTEXT_LENGTH = 32_768
TOKEN = 1000
WORD = " word"


class Settings(ModelSettings, RedisSettings):
    """An encoder and a decoder that announce the model in `model_dir`."""


class Steps:
    """Wakes all tasks that wait for a step of the same length together."""

    def __init__(self) -> None:
        self._waiting: dict[float, asyncio.Future[None]] = {}

    async def next(self, seconds: float) -> None:
        step = self._waiting.get(seconds)
        if step is None:
            loop = asyncio.get_running_loop()
            step = self._waiting[seconds] = loop.create_future()
            # Steps lie on a fixed grid, so that a late one does not delay the next.
            loop.call_later(seconds - time.monotonic() % seconds, self._wake, seconds)
        await asyncio.shield(step)

    def _wake(self, seconds: float) -> None:
        self._waiting.pop(seconds).set_result(None)


class Encoder(encoder_pb2_grpc.EncoderServiceServicer):
    def __init__(self, spec: VisionSpec, store: EmbeddingStore) -> None:
        self._spec = spec
        self._store = store

    async def Encode(
        self, request: encoder_pb2.EncodeRequest, context: Context
    ) -> encoder_pb2.EncodeResponse:
        header = read_header(request.image)
        if header is None or not await self._store.put(from_proto(request.key), b"encoded"):
            raise RuntimeError("not an image, or no Redis")
        grid = self._spec.grid(header.width, header.height, low_detail=request.key.low_detail)
        return encoder_pb2.EncodeResponse(
            rows=grid.rows, cols=grid.cols, source=encoder_pb2.EMBEDDING_SOURCE_ENCODED
        )

    async def Fetch(
        self, request: encoder_pb2.FetchRequest, context: Context
    ) -> AsyncGenerator[encoder_pb2.FetchResponse]:
        raise NotFound("no embedding is stored here", "EMBEDDING_NOT_FOUND")
        yield

    async def GetEncoderInfo(
        self, request: encoder_pb2.GetEncoderInfoRequest, context: Context
    ) -> encoder_pb2.GetEncoderInfoResponse:
        return encoder_pb2.GetEncoderInfoResponse(
            model=MODEL, fingerprint=FINGERPRINT, width=self._spec.width, dtype="bf16"
        )


class Decoder(decoder_pb2_grpc.DecoderServiceServicer):
    def __init__(self, spec: VisionSpec) -> None:
        self._width = spec.width
        self._steps = Steps()

    async def Generate(
        self, request: decoder_pb2.GenerateRequest, context: Context
    ) -> AsyncGenerator[decoder_pb2.GenerateResponse]:
        step = request.sampling.seed / 1e3
        left = request.sampling.max_tokens - 1
        yield _response(1, is_last=not left)
        last = time.monotonic()
        while left:
            await self._steps.next(step)
            now = time.monotonic()
            due = max(1, min(left, round((now - last) / step)))
            last = now
            left -= due
            yield _response(due, is_last=not left)

    async def GetDecoderInfo(
        self, request: decoder_pb2.GetDecoderInfoRequest, context: Context
    ) -> decoder_pb2.GetDecoderInfoResponse:
        return decoder_pb2.GetDecoderInfoResponse(
            model=MODEL,
            fingerprint=FINGERPRINT,
            width=self._width,
            dtype="bf16",
            context_length=CONTEXT_LENGTH,
            max_running=1 << 16,
        )


class StandInTier:
    name = "stand-in"
    services: tuple[str, ...] = (
        decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"].full_name,
        encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name,
    )
    quiet: tuple[str, ...] = (f"{services[0]}/Generate", f"{services[0]}/GetDecoderInfo")

    def __init__(self, settings: Settings) -> None:
        self._spec = VisionSpec.from_params(read_params(settings.model_dir))
        self._store = EmbeddingStore.from_url(
            settings.redis_url, width=self._spec.width, dtype=DType.BF16
        )

    def register(self, server: grpc.aio.Server) -> None:
        encoder = Encoder(self._spec, self._store)
        encoder_pb2_grpc.add_EncoderServiceServicer_to_server(encoder, server)
        decoder_pb2_grpc.add_DecoderServiceServicer_to_server(Decoder(self._spec), server)

    async def start(self) -> None:
        pass

    async def failed(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> None:
        await self._store.close()


def _response(tokens: int, *, is_last: bool) -> decoder_pb2.GenerateResponse:
    reason = chat_pb2.FINISH_REASON_LENGTH if is_last else chat_pb2.FINISH_REASON_UNSPECIFIED
    delta = chat_pb2.Choice(text=WORD * tokens, token_ids=[TOKEN] * tokens, finish_reason=reason)
    return decoder_pb2.GenerateResponse(delta=delta)


if __name__ == "__main__":
    run(StandInTier, load(Settings, prog="stand-in"))
