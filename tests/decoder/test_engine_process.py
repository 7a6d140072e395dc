import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from models.random_checkpoint import RandomSpec, write_random_checkpoint
from pixtral_core.errors import StartupError
from pixtral_decoder.process import DecoderTier
from pixtral_decoder.settings import DecoderSettings


def without_tokenizer(directory: Path) -> None:
    """For images of another size than those of the tokenizers that mistral_common ships."""
    path = directory / "params.json"
    params = json.loads(path.read_text())
    params["vision_encoder"] |= {"max_image_size": 512, "image_size": 512}
    path.write_text(json.dumps(params))
    (directory / "tekken.json").unlink()


def without_vocabulary(directory: Path) -> None:
    params = json.loads((directory / "params.json").read_text())
    del params["vocab_size"]
    (directory / "params.json").write_text(json.dumps(params))


def without_weights(directory: Path) -> None:
    (directory / "consolidated.safetensors").unlink()


def without_numbers(directory: Path) -> None:
    (directory / "params.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without_tokenizer, "tekken.json"),
        (without_vocabulary, "vocab_size"),
        (without_weights, "consolidated"),
        (without_numbers, "params.json is missing.* no config.json"),
    ],
)
async def test_an_unfit_checkpoint_is_told_in_one_line_before_the_engine_starts(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(write_random_checkpoint(tmp_path / "model", RandomSpec(dim=32)))
    tier = DecoderTier(DecoderSettings(model_dir=tmp_path / "model"))
    with pytest.raises(StartupError, match=says):
        await tier.start()
    await tier.stop()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"max_num_batch_tokens": 1024}, "no argument max_num_batch_tokens"),
        ({"max_num_batched_tokens": "many"}, "max_num_batched_tokens"),
        ({"kv_cache_dtype": "fp1"}, "cache_dtype"),
    ],
)
async def test_an_argument_that_vllm_does_not_take_is_told_in_one_line(
    checkpoint: Path, arguments: dict[str, object], says: str
) -> None:
    tier = DecoderTier(DecoderSettings(model_dir=checkpoint, engine_args=arguments))
    with warnings.catch_warnings():
        # vLLM's own, at import.
        warnings.simplefilter("ignore")
        with pytest.raises(StartupError, match=says):
            await tier.start()
    await tier.stop()
