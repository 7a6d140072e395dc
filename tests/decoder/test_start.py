"""Checkpoints that a decoder refuses before it starts its engine."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pixtral_core.errors import StartupError
from pixtral_decoder.process import DecoderTier
from pixtral_decoder.settings import DecoderSettings

FILES = ("params.json", "tekken.json", "consolidated.safetensors")


@pytest.fixture
def model_dir(checkpoint: Path, tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).symlink_to(checkpoint / name)
    return tmp_path


async def refusal(model_dir: Path, **more: Any) -> str:
    settings = DecoderSettings(model_dir=model_dir, redis_url="redis://127.0.0.1:1", **more)
    tier = DecoderTier(settings)
    try:
        with pytest.raises(StartupError) as refused:
            await tier.start()
    finally:
        await tier.stop()
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"temperature": 0.7,}', "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"temperature": "0.7"}', "temperature is not a number"),
    ],
)
async def test_a_broken_generation_config(model_dir: Path, text: str, problem: str) -> None:
    (model_dir / "generation_config.json").write_text(text)
    refused = await refusal(model_dir)
    assert "generation_config.json" in refused
    assert problem in refused


async def test_a_model_without_its_output(model_dir: Path) -> None:
    weights = model_dir / "consolidated.safetensors"
    tensors = load_file(weights)
    del tensors["output.weight"]
    weights.unlink()
    save_file(tensors, weights)
    assert "no file has output.weight" in await refusal(model_dir)


async def test_a_measurement_without_weights_needs_none(model_dir: Path) -> None:
    weights = model_dir / "consolidated.safetensors"
    vision = {name: each for name, each in load_file(weights).items() if "vision" in name}
    weights.unlink()
    save_file(vision, weights)
    assert "no file has tok_embeddings.weight" in await refusal(model_dir)
    # It goes on to the engine, which refuses an argument that does not exist.
    dummy = {"load_format": "dummy", "no_such_argument": 1}
    with warnings.catch_warnings():
        # vLLM's own, at import.
        warnings.simplefilter("ignore")
        assert "no_such_argument" in await refusal(model_dir, engine_args=dummy)
