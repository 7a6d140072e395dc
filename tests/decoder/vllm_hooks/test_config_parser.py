"""A checkpoint's `params.json`, as vLLM is given it."""

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest

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
