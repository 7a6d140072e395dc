"""Prompts and embeddings for the decoder's tests."""

import asyncio
import hashlib
import random
from collections.abc import Callable

import torch

from pixtral_core.cache import wire_format
from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.cache.wire_format import DType, Embedding
from pixtral_core.generation.sampling import Sampling
from pixtral_core.model.vision_spec import Grid, VisionSpec
from pixtral_decoder.request import ImagePlace, Prompt
from tests.support.redis_server import RedisServer

FINGERPRINT = "f" * 32
WIDTH = 64
GREEDY = Sampling(max_tokens=4, temperature=0.0)

SPEC = VisionSpec.from_params(
    {
        "vision_encoder": {
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 128,
            "rope_theta": 1e4,
            "patch_size": 16,
            "image_size": 1024,
            "image_token_id": 10,
        }
    }
)


def text(name: str, length: int, sampling: Sampling, salt: str = "") -> Prompt:
    """The same words for the same length, told apart in the prefix cache by the salt."""
    words = random.Random(length)
    token_ids = [1, 3, *(words.randrange(1000, 131072) for _ in range(length - 3)), 4]
    return Prompt(name, token_ids, (), sampling, salt or name)


def key_of(name: str, fingerprint: str = FINGERPRINT) -> EmbeddingKey:
    return EmbeddingKey(hashlib.sha256(name.encode()).digest(), fingerprint, "tenant")


def embedding_of(tensor: torch.Tensor, grid: Grid) -> Embedding:
    data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return Embedding(grid.rows, grid.cols, tensor.shape[-1], DType.F32, data)


def wire(key: EmbeddingKey, tensor: torch.Tensor, grid: Grid) -> bytes:
    return wire_format.encode(key, embedding_of(tensor, grid))


def store(redis: RedisServer, key: EmbeddingKey, tensor: torch.Tensor, grid: Grid) -> None:
    with redis.client() as client:
        client.set(key.redis_key, wire(key, tensor, grid))


def prompt_of(
    *parts: int | tuple[EmbeddingKey, Grid],
    request_id: str = "request",
    sampling: Sampling = GREEDY,
    encoder: str = "",
    cache_salt: str | None = None,
) -> Prompt:
    """A prompt of text tokens and images, the images' placeholders in their place."""
    token_ids: list[int] = []
    images: list[ImagePlace] = []
    for part in parts:
        if isinstance(part, int):
            token_ids.append(part)
        else:
            key, grid = part
            images.append(ImagePlace(key, len(token_ids), grid, encoder))
            token_ids += SPEC.placeholder(grid)
    return Prompt(request_id, token_ids, tuple(images), sampling, cache_salt)


def values(grid: Grid, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(grid.tokens, WIDTH, generator=generator)


async def eventually(condition: Callable[[], object], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
