"""One real vLLM engine in float32 behind the decoder, and prompts for it."""

import asyncio
import gc
import hashlib
import urllib.request
import warnings
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pixtral.internal.v1 import decoder_pb2, decoder_pb2_grpc
from pixtral_core.cache.embedding_key import EmbeddingKey, to_proto
from pixtral_core.cache.wire_format import DType
from pixtral_core.errors import ServingError, from_rpc_error
from pixtral_core.generation.sampling import Sampling
from pixtral_core.generation.sampling import to_proto as sampling_to_proto
from pixtral_core.model.fingerprint import fingerprint
from pixtral_core.model.vision_spec import Grid
from pixtral_core.server.channel import open_channel
from pixtral_core.server.process import running
from pixtral_decoder.engine.engine import DecoderEngine
from pixtral_decoder.process import DecoderTier
from pixtral_decoder.request import Prompt
from pixtral_decoder.settings import DecoderSettings
from tests.decoder.prompts import prompt_of, store
from tests.support.redis_server import RedisServer
from tests.support.reference import Reference

MAX_RUNNING = 8


CONTEXT_LENGTH = 8192


DEADLINE = 120.0


BOS, INST, END_INST = 1, 3, 4


GREEDY = Sampling(max_tokens=24, temperature=0.0, ignore_eos=True)


Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Image:
    key: EmbeddingKey
    grid: Grid
    pixels: Pixels
    embedding: torch.Tensor


@dataclass(frozen=True, slots=True)
class Answer:
    token_ids: list[int]
    text: str
    cached_tokens: int
    responses: list[decoder_pb2.GenerateResponse]


class Served:
    """The decoder over gRPC, its engine, and what an encoder would have stored for it."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        metrics: str,
        engine: DecoderEngine,
        reference: Reference,
        made_by: str,
        redis: RedisServer,
    ) -> None:
        self.channel = channel
        self.stub = decoder_pb2_grpc.DecoderServiceStub(channel)
        self.engine = engine
        self.reference = reference
        self._metrics = metrics
        self._made_by = made_by
        self.redis = redis
        self._number = 0

    def image(self, rows: int, cols: int, seed: int) -> Image:
        """A new image; its embedding is in Redis."""
        pixels = np.random.default_rng(seed).standard_normal((3, rows * 16, cols * 16))
        image = pixels.astype(np.float32)
        key = EmbeddingKey(hashlib.sha256(image.tobytes()).digest(), self._made_by, "tenant")
        made = Image(key, Grid(rows, cols), image, self.reference.embed_image(image))
        store(self.redis, key, made.embedding, made.grid)
        return made

    def prompt(self, *parts: int | Image, sampling: Sampling = GREEDY, salt: str = "s") -> Prompt:
        self._number += 1
        placed = [(part.key, part.grid) if isinstance(part, Image) else part for part in parts]
        return prompt_of(
            *placed, request_id=f"request-{self._number}", sampling=sampling, cache_salt=salt
        )

    def call(self, prompt: Prompt) -> Any:
        return self.stub.Generate(request_of(prompt), timeout=DEADLINE)

    async def answer(self, prompt: Prompt) -> Answer:
        responses = [response async for response in self.call(prompt)]
        return Answer(
            [token for response in responses for token in response.delta.token_ids],
            "".join(response.delta.text for response in responses),
            responses[0].cached_tokens,
            responses,
        )

    async def several(self, prompt: Prompt) -> list[str]:
        """The texts of a prompt's answers."""
        texts = [""] * prompt.sampling.n
        async for response in self.call(prompt):
            texts[response.delta.index] += response.delta.text
        return texts

    async def refusal(self, request: decoder_pb2.GenerateRequest) -> ServingError:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            async for _ in self.stub.Generate(request, timeout=DEADLINE):
                pass
        return from_rpc_error(refusal.value)

    async def admitted(self) -> int:
        info = await self.stub.GetDecoderInfo(decoder_pb2.GetDecoderInfoRequest())
        return int(info.running + info.waiting)

    async def metrics(self) -> str:
        url = f"http://{self._metrics}/metrics"
        return await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())

    async def generated(self) -> float:
        """Tokens that the engine has made since it started."""
        lines = (await self.metrics()).splitlines()
        return sum(
            float(line.split()[-1]) for line in lines if line.startswith("vllm:generation_tokens_t")
        )


def request_of(prompt: Prompt) -> decoder_pb2.GenerateRequest:
    return decoder_pb2.GenerateRequest(
        request_id=prompt.request_id,
        prompt_token_ids=prompt.token_ids,
        images=[
            decoder_pb2.PromptImage(
                key=to_proto(image.key),
                offset=image.offset,
                rows=image.grid.rows,
                cols=image.grid.cols,
            )
            for image in prompt.images
        ],
        sampling=sampling_to_proto(prompt.sampling),
        cache_salt=prompt.cache_salt or "",
        generated_token_ids=prompt.generated,
        priority=prompt.priority,
        adapter=prompt.adapter,
    )


@asynccontextmanager
async def serving(
    checkpoint: Path, redis_server: RedisServer, **others: Any
) -> AsyncIterator[Served]:
    settings = DecoderSettings(
        listen="127.0.0.1:0",
        model_dir=checkpoint,
        dtype=DType.F32,
        redis_url=redis_server.url,
        max_images=6,
        context_length=CONTEXT_LENGTH,
        drain_seconds=0,
        **others,
    )
    tier = DecoderTier(settings)
    async with AsyncExitStack() as stack:
        with warnings.catch_warnings():
            # vLLM's own, at import and while it loads.
            warnings.simplefilter("ignore")
            addresses = await stack.enter_async_context(running(tier, settings))
        channel = await stack.enter_async_context(open_channel(addresses.grpc, None))
        yield Served(
            channel,
            addresses.metrics,
            tier._engine,
            await asyncio.to_thread(Reference, checkpoint),
            await asyncio.to_thread(fingerprint, checkpoint, DType.F32),
            redis_server,
        )
        with warnings.catch_warnings():
            # vLLM leaves sockets to the garbage collector, which warns of them.
            warnings.simplefilter("ignore")
            await stack.aclose()
            gc.collect()
    assert not sockets_of(tier._engine).exists()


def sockets_of(engine: DecoderEngine) -> Path:
    assert engine._sockets is not None
    return Path(engine._sockets.name)
