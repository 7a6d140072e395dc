"""A checkpoint's `params.json` or `config.json`, as vLLM is given it."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import Ministral3Config, Mistral3Config, PixtralVisionConfig

from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.transformers_utils import config

    from pixtral_decoder.vllm_hooks import config_parser


def test_still_there() -> None:
    assert_still_there(config_parser)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often vLLM has looked for a Hugging Face config, and for nothing else than the length."""
    made: list[str] = []

    def look(model: Any, *_: Any, **__: Any) -> int:
        made.append(str(model))
        return config_parser.CONTEXT_LENGTH

    monkeypatch.setattr(config, "_maybe_retrieve_max_pos_from_hf", look)
    return made


def test_still_needed_while_vllm_looks_for_the_context_length_elsewhere(
    checkpoint: Path, looks: list[str]
) -> None:
    """Once this fails, `pixtral_decoder.vllm_hooks.config_parser` can go."""
    config.MistralConfigParser().parse(checkpoint, trust_remote_code=False)
    assert looks == [str(checkpoint)]


def test_a_model_without_a_context_length_has_vllms_own(checkpoint: Path, looks: list[str]) -> None:
    params, parsed = config_parser.ParamsParser().parse(checkpoint, trust_remote_code=False)
    assert looks == []
    assert params["max_position_embeddings"] == 128_000
    assert parsed.get_text_config().max_position_embeddings == 128_000


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A config.json of Ministral 3, without weights."""
    text = Ministral3Config(vocab_size=1000, tie_word_embeddings=True)
    vision = PixtralVisionConfig(patch_size=14, image_size=1540, hidden_act="silu")
    made = Mistral3Config(
        text_config=text, vision_config=vision, spatial_merge_size=2, tie_word_embeddings=True
    )
    (tmp_path / "config.json").write_text(json.dumps(made.to_dict()))
    return tmp_path


def test_still_needed_while_vllm_passes_over_the_scaling_of_queries(theirs: Path) -> None:
    _, parsed = config.HFConfigParser().parse(theirs, trust_remote_code=False)
    assert not hasattr(parsed.text_config, "llama_4_scaling")


def test_a_config_json_has_what_the_decoders_model_looks_for(theirs: Path) -> None:
    _, parsed = config_parser.ParamsParser().parse(theirs, trust_remote_code=False)
    text, vision = parsed.text_config, parsed.vision_config
    assert text.llama_4_scaling == {"beta": 0.1, "original_max_position_embeddings": 16384}
    assert text.architectures == ["MistralForCausalLM"]
    assert text.tie_word_embeddings
    assert (vision.max_image_size, vision.spatial_merge_size) == (1540, 2)
    assert vision.adapter_bias is False


def test_a_decoder_takes_vllms_own_format_without_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before and after vLLM has given its loggers handlers of their own."""
    monkeypatch.setattr(config, "_CONFIG_FORMAT_TO_CONFIG_PARSER", {"mistral": object()})
    logger, records = config.logger, list[logging.LogRecord]()
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.addHandler(handler)
    try:
        config_parser.register("pixtral-params", is_decoders=True)
        assert not [record for record in records if record.levelno > logging.INFO]
        assert config.get_config_parser("mistral").__class__ is config_parser.ParamsParser
        # vLLM still warns about any other format.
        config_parser.register("pixtral-params", is_decoders=False)
        assert [record for record in records if record.levelno > logging.INFO]
    finally:
        logger.removeHandler(handler)
