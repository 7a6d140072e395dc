"""The two engines that `bench.decoder` compares, each used the way its own server uses it."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, aclosing, closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from redis import Redis

from bench.own_redis import redis
from pixtral_core.cache import wire_format
from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.cache.embedding_store import EmbeddingStore
from pixtral_core.cache.wire_format import DType, Embedding
from pixtral_core.generation.sampling import Sampling
from pixtral_core.model.vision_spec import Grid, VisionSpec
from pixtral_decoder.embeddings.image_embedding import ImageEmbedding
from pixtral_decoder.embeddings.source import EmbeddingSource, PeerEncoders
from pixtral_decoder.engine.engine import DecoderEngine
from pixtral_decoder.engine.engine_args import EngineOptions
from pixtral_decoder.request import ImagePlace, Prompt

SIDE_PX = 1024
CONTEXT_LENGTH = 16_384
RUNNING = 64
# Distinct embeddings; pictures use them in turn, each under its own key.
TENSORS = 16


class Side(Protocol):
    """An engine; `ask` yields the number of new tokens in each message of the answer.

    `picture` is the number of the image whose placeholder starts at `offset` in `token_ids`.
    """

    engine: Any

    async def start(self) -> None: ...

    def prepare(self, pictures: Sequence[int]) -> None: ...

    async def fetch(self, picture: int) -> None:
        """Reads the picture's embedding into the process's own memory."""

    def ask(
        self,
        name: str,
        token_ids: list[int],
        *,
        tokens: int,
        picture: int | None = None,
        offset: int = 0,
        salt: str | None = None,
    ) -> AsyncGenerator[int]: ...

    async def close(self) -> None: ...


class Ours:
    """The decoder's engine with the decoder's source of embeddings.

    It reads an embedding from a real Redis over loopback if neither the engine nor the process has
    it.
    """

    def __init__(
        self, model_dir: Path, spec: VisionSpec, kv_cache_bytes: int | None, more: Mapping[str, Any]
    ) -> None:
        options = EngineOptions(
            model_dir=model_dir,
            dtype="bfloat16",
            may_widen=True,
            context_length=CONTEXT_LENGTH,
            max_running=RUNNING,
            kv_cache_bytes=kv_cache_bytes,
            more=more,
        )
        self.engine = DecoderEngine(options)
        self._grid = spec.grid(SIDE_PX, SIDE_PX)
        rows, cols, width = self._grid.rows, self._grid.cols, spec.width
        self._embeddings = [
            Embedding(rows, cols, width, DType.BF16, _random(rows * cols, width))
            for _ in range(TENSORS)
        ]
        self._running = ExitStack()

    async def start(self) -> None:
        # The decoder's process does the same.
        torch.set_num_threads(1)
        self._redis = self._running.enter_context(redis())
        width = self._embeddings[0].width
        self._source = EmbeddingSource(
            store=EmbeddingStore.from_url(self._redis.url, width=width, dtype=DType.BF16),
            peers=PeerEncoders(
                width=width, dtype=DType.BF16, seconds=1.0, tls=None, allow_insecure=False
            ),
            dtype=DType.BF16,
            cache_bytes=512 << 20,
        )
        await self.engine.start()

    def prepare(self, pictures: Sequence[int]) -> None:
        with closing(Redis.from_url(self._redis.url)) as client:
            client.flushall()
            for number in pictures:
                key = place(number, 0, self._grid).key
                value = wire_format.encode(key, self._embeddings[number % TENSORS])
                client.set(key.redis_key, value)

    async def fetch(self, picture: int) -> None:
        await self._source.get(place(picture, 0, self._grid))

    async def ask(
        self,
        name: str,
        token_ids: list[int],
        *,
        tokens: int,
        picture: int | None = None,
        offset: int = 0,
        salt: str | None = None,
    ) -> AsyncGenerator[int]:
        images: tuple[ImagePlace, ...] = ()
        embeddings: list[ImageEmbedding | None] = []
        if picture is not None:
            image = place(picture, offset, self._grid)
            images, embeddings = (image,), [None]
            if not self.engine.holds(image):
                embeddings = [await self._source.get(image)]
        sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        prompt = Prompt(name, token_ids, images, sampling, salt)
        async with aclosing(self.engine.generate(prompt, embeddings)) as deltas:
            async for delta in deltas:
                yield len(delta.token_ids)

    async def close(self) -> None:
        await self.engine.shutdown()
        await self._source.close()
        self._running.close()


def _random(tokens: int, width: int) -> bytes:
    return torch.randn(tokens, width).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()


class Stock:
    """vLLM as its own OpenAI server runs it, with decoded pictures: no HTTP, base64 or JPEG."""

    def __init__(
        self, model_dir: Path, spec: VisionSpec, kv_cache_bytes: int | None, more: Mapping[str, Any]
    ) -> None:
        self.engine: Any = None
        self._arguments = {
            "model": str(model_dir),
            "tokenizer_mode": "mistral",
            "config_format": "mistral",
            "load_format": "mistral",
            "dtype": "bfloat16",
            "max_model_len": CONTEXT_LENGTH,
            "max_num_seqs": RUNNING,
            "limit_mm_per_prompt": {"image": 8},
            "kv_cache_memory_bytes": kv_cache_bytes,
            "gpu_memory_utilization": 0.9,
            "enable_log_requests": False,
            **more,
        }
        self._pictures: dict[int, Any] = {}
        self._base = np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8)

    async def start(self) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        # vLLM chooses the tokens of a step by the usage context.
        self.engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(**self._arguments), usage_context=UsageContext.OPENAI_API_SERVER
        )

    def prepare(self, pictures: Sequence[int]) -> None:
        from PIL import Image

        self._pictures.clear()
        for number in pictures:
            pixels = self._base.copy()
            pixels[0, :8, 0] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
            self._pictures[number] = Image.fromarray(pixels)

    async def fetch(self, picture: int) -> None:
        """Nothing to do: the pictures are in memory already."""

    async def ask(
        self,
        name: str,
        token_ids: list[int],
        *,
        tokens: int,
        picture: int | None = None,
        offset: int = 0,
        salt: str | None = None,
    ) -> AsyncGenerator[int]:
        from vllm.renderers.inputs.preprocess import parse_model_prompt
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        prompt: dict[str, Any] = {"prompt_token_ids": token_ids}
        if salt is not None:
            prompt["cache_salt"] = salt
        if picture is not None:
            prompt["multi_modal_data"] = {"image": self._pictures[picture]}
        # The server does the same: it processes pictures beside its event loop.
        (given,) = await self.engine.renderer.render_cmpl_async(
            [parse_model_prompt(self.engine.model_config, prompt)]
        )
        parameters = SamplingParams(
            max_tokens=tokens,
            temperature=0.0,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
        )
        async with aclosing(self.engine.generate(given, parameters, name)) as outputs:
            async for output in outputs:
                yield len(output.outputs[0].token_ids)

    async def close(self) -> None:
        self.engine.shutdown()


def place(picture: int, offset: int, grid: Grid) -> ImagePlace:
    key = EmbeddingKey(picture.to_bytes(32, "big"), "0" * 32, "bench")
    return ImagePlace(key, offset, grid)
