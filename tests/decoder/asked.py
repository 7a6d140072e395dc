"""Questions for a real engine, and the plain model's answers to them."""

import random
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.generation.sampling import Sampling
from pixtral_core.model.vision_spec import VisionSpec, read_params
from pixtral_decoder.embeddings.image_embedding import ImageEmbedding
from pixtral_decoder.engine.engine import DecoderEngine
from pixtral_decoder.request import ImagePlace, Prompt
from tests.decoder.memory import in_a_file
from tests.support.reference import Reference

TOKENS = 24
LONG = 4000


@dataclass(frozen=True, slots=True)
class Asked:
    name: str
    token_ids: list[int]
    images: tuple[ImagePlace, ...] = ()
    pixels: tuple[NDArray[np.float32], ...] = ()
    embeddings: tuple[ImageEmbedding, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    token_ids: list[int]
    prompt_logprobs: torch.Tensor


def questions(model_dir: Path, reference: Reference) -> list[Asked]:
    """A text, an image with a text, and a text of many steps."""
    words = random.Random(0)

    def text(count: int) -> list[int]:
        return [words.randrange(1000, 131072) for _ in range(count)]

    spec = VisionSpec.from_params(read_params(model_dir))
    pixels = np.random.default_rng(1).standard_normal((3, 12 * 16, 8 * 16)).astype(np.float32)
    grid = spec.grid(8 * 16, 12 * 16)
    place = ImagePlace(EmbeddingKey(bytes(32), "f" * 32, "tenant"), 2, grid)
    with_image = [1, 3, *spec.placeholder(grid), *text(5), 4]
    # It crosses to the engine as a large one does.
    embedding = in_a_file(reference.embed_image(pixels))
    return [
        Asked("text", [1, 3, *text(20), 4]),
        Asked("image", with_image, (place,), (pixels,), (embedding,)),
        Asked(f"{LONG} tokens", [1, 3, *text(LONG - 3), 4]),
    ]


async def ask(
    engine: DecoderEngine, asked: Asked, adapter: str = "", *, prompt_logprobs: int | None = 0
) -> Answer:
    """The engine's greedy answer. With log-probabilities of the prompt, its steps are small."""
    sampling = Sampling(
        max_tokens=TOKENS, temperature=0.0, ignore_eos=True, prompt_logprobs=prompt_logprobs
    )
    name = f"{asked.name} {adapter} {prompt_logprobs}"
    prompt = Prompt(name, asked.token_ids, asked.images, sampling, "salt", adapter=adapter)
    token_ids: list[int] = []
    logprobs: list[float] = []
    async with aclosing(engine.generate(prompt, asked.embeddings, resend=True)) as deltas:
        async for delta in deltas:
            token_ids += delta.token_ids
            logprobs += [each.chosen.logprob for each in delta.prompt_logprobs if each.chosen]
    return Answer(token_ids, torch.tensor(logprobs))


def expected(reference: Reference, asked: Asked) -> Answer:
    """The plain model's greedy answer."""
    pixels = list(asked.pixels)
    rows = reference.prompt_logprobs(asked.token_ids, pixels)
    chosen = rows.gather(1, torch.tensor(asked.token_ids[1:])[:, None])[:, 0]
    return Answer(reference.generate(asked.token_ids, pixels, TOKENS, ignore_eos=True), chosen)


def apart(one: Answer, other: Answer) -> float:
    """The median of what the prompt's log-probabilities differ by."""
    told, wanted = one.prompt_logprobs, other.prompt_logprobs
    return float((told - wanted).abs().median()) if told.shape == wanted.shape else float("inf")


def alike(one: Answer, other: Answer) -> int:
    """How many tokens of the answers are the same, up to the first that is not."""
    pairs = zip(one.token_ids, other.token_ids, strict=True)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), TOKENS)


def word(fine: bool) -> str:
    return "close" if fine else "NOT CLOSE"
