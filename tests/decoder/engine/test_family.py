"""The Mistral models with this tower, in the shapes and the forms in which they are published, in a
real engine each, against transformers' own classes."""

import gc
import random
import shutil
import warnings
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.generation.sampling import Sampling
from pixtral_core.model.checkpoint import read_spec
from pixtral_core.model.hugging_face import is_hugging_face
from pixtral_decoder.engine.engine import DecoderEngine
from pixtral_decoder.engine.engine_args import EngineOptions
from pixtral_decoder.request import ImagePlace, Prompt
from tests.decoder.memory import in_a_file
from tests.support.hf_reference import hf_generate, load_hf, write_hf
from tests.support.published_shapes import ministral_3, mistral_small, pixtral_large
from tests.support.reference import Reference


def as_it_is(original: Path, _: Path) -> Path:
    return original


def in_hugging_faces_form(original: Path, to: Path) -> Path:
    """With the tokenizer's file, as the repositories of these models have it."""
    published = write_hf(original, to)
    shutil.copy(original / "tekken.json", published)
    return published


@pytest.mark.parametrize(
    ("make", "publish", "tensor_parallel"),
    [
        (pixtral_large, as_it_is, 1),
        (mistral_small, in_hugging_faces_form, 2),
        (ministral_3, in_hugging_faces_form, 1),
    ],
)
async def test_greedy_tokens_are_those_of_transformers(
    make: Callable[[Path], Path],
    publish: Callable[[Path, Path], Path],
    tensor_parallel: int,
    tmp_path: Path,
) -> None:
    original = make(tmp_path / "original")
    model_dir = publish(original, tmp_path / "published")
    assert is_hugging_face(model_dir) is (publish is in_hugging_faces_form)
    spec = read_spec(model_dir)
    cols, rows = 8, 12
    size = (rows * spec.patch_size, cols * spec.patch_size)
    pixels = np.random.default_rng(1).standard_normal((3, *size)).astype(np.float32)
    grid = spec.grid(size[1], size[0])
    image = ImagePlace(EmbeddingKey(bytes(32), "f", "tenant"), 2, grid)
    words = random.Random(0)
    question = [words.randrange(1100, 32768) for _ in range(40)]
    token_ids = [1, 3, *spec.placeholder(grid), *question, 4]
    expected = hf_generate(load_hf(original), token_ids, [pixels], 16)
    embedding = Reference(original).embed_image(pixels)
    assert embedding.shape == (grid.tokens, spec.width)

    options = EngineOptions(
        model_dir, dtype="float32", context_length=2048, tensor_parallel=tensor_parallel
    )
    sampling = Sampling(max_tokens=16, temperature=0.0, ignore_eos=True)
    prompt = Prompt("family", token_ids, (image,), sampling)
    with warnings.catch_warnings():
        # vLLM's own: at import, while it loads, and of sockets that it leaves open.
        warnings.simplefilter("ignore")
        answer = await answered(options, prompt, embedding)
        gc.collect()

    assert answer == expected


async def answered(options: EngineOptions, prompt: Prompt, embedding: Tensor) -> list[int]:
    engine = DecoderEngine(options)
    try:
        await engine.start()
        # Handed over as a large one is, and from there on to each part of the model.
        async with aclosing(engine.generate(prompt, [in_a_file(embedding)])) as deltas:
            return [token async for delta in deltas for token in delta.token_ids]
    finally:
        await engine.shutdown()
