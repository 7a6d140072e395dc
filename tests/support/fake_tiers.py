"""Encoders and decoders for unit tests: real servers and stubs without a model."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc

from pixtral.internal.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc
from pixtral.v1 import chat_pb2
from pixtral_core.cache.embedding_key import EmbeddingKey, from_proto
from pixtral_core.errors import ServingError, to_status
from pixtral_core.image.header import read_header
from pixtral_core.model.vision_spec import VisionSpec

WIDTH = 64
FINGERPRINT = "f00d"
TOOL_CALLS = 9

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Responses = AsyncIterator[decoder_pb2.GenerateResponse]
Behaviour: TypeAlias = Callable[[decoder_pb2.GenerateRequest], Responses]


class _Process:
    """A gRPC server that can stop and start again on the same port."""

    def __init__(self) -> None:
        self.address = "127.0.0.1:0"
        self.width = WIDTH
        self.fingerprint = FINGERPRINT
        self._server: grpc.aio.Server | None = None

    def _register(self, server: grpc.aio.Server) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        self._server = grpc.aio.server()
        self._register(self._server)
        port = self._server.add_insecure_port(self.address)
        self.address = f"{self.address.rpartition(':')[0]}:{port}"
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None


class FakeEncoder(_Process, encoder_pb2_grpc.EncoderServiceServicer):
    """Encodes by remembering the key.

    Attributes:
        calls: the requested keys, in order.
        encoded: the keys of all encoded images.
        refusal: the error to answer with, if set.
        cancelled: how many calls were cancelled.
        hold: while it is cleared, calls wait.
    """

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.calls: list[EmbeddingKey] = []
        self.encoded: set[EmbeddingKey] = set()
        self.refusal: ServingError | None = None
        self.cancelled = 0
        self.hold = asyncio.Event()
        self.hold.set()
        self.spec = spec

    @classmethod
    async def started(cls, spec: VisionSpec) -> "FakeEncoder":
        encoder = cls(spec)
        await encoder.start()
        return encoder

    async def Encode(  # noqa: N802
        self, request: encoder_pb2.EncodeRequest, context: Context
    ) -> encoder_pb2.EncodeResponse:
        key = from_proto(request.key)
        self.calls.append(key)
        if self.refusal is not None:
            await context.abort_with_status(to_status(self.refusal))
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        header = read_header(request.image)
        assert header is not None
        grid = self.spec.grid(header.width, header.height, low_detail=key.low_detail)
        is_new = key not in self.encoded
        self.encoded.add(key)
        return encoder_pb2.EncodeResponse(
            rows=grid.rows,
            cols=grid.cols,
            source=encoder_pb2.EMBEDDING_SOURCE_ENCODED
            if is_new
            else encoder_pb2.EMBEDDING_SOURCE_LOCAL,
        )

    async def GetEncoderInfo(  # noqa: N802
        self, request: encoder_pb2.GetEncoderInfoRequest, context: Context
    ) -> encoder_pb2.GetEncoderInfoResponse:
        return encoder_pb2.GetEncoderInfoResponse(
            model="small", fingerprint=self.fingerprint, width=self.width, dtype="f32"
        )

    def _register(self, server: grpc.aio.Server) -> None:
        encoder_pb2_grpc.add_EncoderServiceServicer_to_server(self, server)


class FakeDecoder(_Process, decoder_pb2_grpc.DecoderServiceServicer):
    """Answers each request with the next of `behaviours`, and repeats the last one.

    Attributes:
        calls: the requests so far.
        cancelled: how many requests were cancelled.
        handshakes: how many handshakes began.
        shakes_hands: while it is cleared, handshakes wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.context_length = 32_768
        self.max_running = 4
        self.capacity = 0
        self.adapters: tuple[str, ...] = ()
        self.calls: list[decoder_pb2.GenerateRequest] = []
        self.cancelled = 0
        self.behaviours: list[Behaviour] = [answers]
        self.responses = 0
        self.handshakes = 0
        self.shakes_hands = asyncio.Event()
        self.shakes_hands.set()

    @classmethod
    async def started(cls) -> "FakeDecoder":
        decoder = cls()
        await decoder.start()
        return decoder

    async def Generate(  # noqa: N802
        self, request: decoder_pb2.GenerateRequest, context: Context
    ) -> Responses:
        self.calls.append(request)
        behaviour = self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]
        try:
            async for response in behaviour(request):
                self.responses += 1
                yield response
        except ServingError as refusal:
            await context.abort_with_status(to_status(refusal))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def GetDecoderInfo(  # noqa: N802
        self, request: decoder_pb2.GetDecoderInfoRequest, context: Context
    ) -> decoder_pb2.GetDecoderInfoResponse:
        self.handshakes += 1
        await self.shakes_hands.wait()
        return decoder_pb2.GetDecoderInfoResponse(
            model="small",
            fingerprint=self.fingerprint,
            width=self.width,
            dtype="f32",
            context_length=self.context_length,
            max_running=self.max_running,
            capacity=self.capacity,
            responses=self.responses,
            adapters=self.adapters,
        )

    def _register(self, server: grpc.aio.Server) -> None:
        decoder_pb2_grpc.add_DecoderServiceServicer_to_server(self, server)


def delta(
    text: str,
    *token_ids: int,
    finish: chat_pb2.FinishReason.ValueType = chat_pb2.FINISH_REASON_UNSPECIFIED,
) -> decoder_pb2.GenerateResponse:
    return decoder_pb2.GenerateResponse(
        delta=chat_pb2.Choice(text=text, token_ids=token_ids, finish_reason=finish)
    )


async def answers(_: decoder_pb2.GenerateRequest) -> Responses:
    first = delta("Hello", 1001)
    first.cached_tokens = 3
    first.queue.FromMilliseconds(250)
    yield first
    yield delta(" world", 1002, 1003, finish=chat_pb2.FINISH_REASON_STOP)


async def calls_a_tool(request: decoder_pb2.GenerateRequest) -> Responses:
    """Calls a tool in the format of version 3.

    vLLM spells the control token out, so the answer begins with it, unless the prompt ends with it.
    """
    has_begun = request.prompt_token_ids[-1] == TOOL_CALLS
    said = ['[{"name": "look", "argu', 'ments": {"at"', ': "cat"}}]']
    if not has_begun:
        yield delta("[TOOL_CALLS]", TOOL_CALLS)
    for text in said:
        yield delta(text, 1001)
    yield delta("", 2, finish=chat_pb2.FINISH_REASON_STOP)


async def never_ends(_: decoder_pb2.GenerateRequest) -> Responses:
    yield delta("Hello", 1001)
    await asyncio.Event().wait()


async def never_begins(_: decoder_pb2.GenerateRequest) -> Responses:
    await asyncio.Event().wait()
    yield delta("late")


def refuses(error: ServingError) -> Behaviour:
    async def refuse(_: decoder_pb2.GenerateRequest) -> Responses:
        raise error
        yield

    return refuse


def breaks_midway(error: ServingError) -> Behaviour:
    async def break_midway(_: decoder_pb2.GenerateRequest) -> Responses:
        yield delta("Hello", 1001)
        raise error

    return break_midway
