"""The other Mistral models with this tower, in their shapes, in a real engine each."""

import gc
import json
import random
import warnings
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.random_checkpoint import RandomSpec, write_random_checkpoint
from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.generation.sampling import Sampling
from pixtral_core.model.vision_spec import VisionSpec, read_params
from pixtral_decoder.engine.engine import DecoderEngine
from pixtral_decoder.engine.engine_args import EngineOptions
from pixtral_decoder.request import ImagePlace, Prompt
from tests.decoder.memory import in_a_file
from tests.support.reference import Reference


def pixtral_large(directory: Path) -> Path:
    """Another patch and head size, and an adapter without biases though no merger is before it."""
    spec = RandomSpec(vision_hidden_size=208, patch_size=14, max_image_size=1022)
    write_random_checkpoint(directory, spec)
    params = read_params(directory)
    params["vision_encoder"]["adapter_bias"] = False
    params["max_position_embeddings"] = 131072
    (directory / "params.json").write_text(json.dumps(params))
    weights = load_file(directory / "consolidated.safetensors")
    biases = ("vision_language_adapter.w_in.bias", "vision_language_adapter.w_out.bias")
    kept = {name: weight for name, weight in weights.items() if name not in biases}
    assert len(kept) == len(weights) - 2
    save_file(kept, directory / "consolidated.safetensors", metadata={"format": "pt"})
    return directory


def mistral_small(directory: Path) -> Path:
    """Merged patches, a norm before the adapter, and no biases in it: 3.1 and 3.2."""
    spec = RandomSpec(patch_size=14, max_image_size=1540, spatial_merge_size=2)
    return write_random_checkpoint(directory, spec)


@pytest.mark.parametrize(("make", "tensor_parallel"), [(pixtral_large, 1), (mistral_small, 2)])
async def test_greedy_tokens_are_the_plain_models(
    make: Callable[[Path], Path],
    tensor_parallel: int,
    tmp_path: Path,
) -> None:
    model_dir = make(tmp_path / "model")
    spec = VisionSpec.from_params(read_params(model_dir))
    reference = Reference(model_dir)
    pixels = np.random.default_rng(1).standard_normal((3, 12 * 14, 8 * 14)).astype(np.float32)
    grid = spec.grid(8 * 14, 12 * 14)
    image = ImagePlace(EmbeddingKey(bytes(32), "f", "tenant"), 2, grid)
    words = random.Random(0)
    question = [words.randrange(1000, 131072) for _ in range(5)]
    token_ids = [1, 3, *spec.placeholder(grid), *question, 4]
    expected = reference.generate(token_ids, [pixels], 16)
    embedding = reference.embed_image(pixels)
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
