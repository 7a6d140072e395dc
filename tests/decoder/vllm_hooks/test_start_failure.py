"""The cause of an engine's failed start, as the decoder reads it."""

import inspect
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pixtral_decoder.engine.engine import DecoderEngine, EngineNotStarted
from pixtral_decoder.engine.engine_args import EngineOptions
from pixtral_decoder.vllm_hooks import start_failure
from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.v1.engine import utils


@pytest.fixture
def vllm_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("vllm")
    before = list(logger.handlers)
    yield logging.getLogger("vllm.v1.engine.core")
    logger.handlers = before


def test_still_there() -> None:
    assert_still_there(start_failure)


def test_still_needed_while_vllm_refers_to_what_stands_above() -> None:
    """Once this fails, see whether vLLM's exception has the cause: `start_failure` can go then."""
    assert "See root cause above" in inspect.getsource(utils)


def test_the_first_exception_is_the_cause(vllm_logger: logging.Logger) -> None:
    with start_failure.recorded() as cause:
        start_failure.record()
        vllm_logger.error("no exception")
        assert cause() == ""
        for error in (ValueError("\n  the kernel lacks\nmuch more"), RuntimeError("later")):
            try:
                raise error
            except Exception:
                vllm_logger.exception("EngineCore failed to start.")
        assert cause() == "ValueError: the kernel lacks"
    assert start_failure.CAUSE not in os.environ
    # Nobody reads a failure once the engine has started.
    vllm_logger.error("later", exc_info=RuntimeError("later"))


async def test_an_engine_that_cannot_load_its_weights_says_why(
    checkpoint: Path, tmp_path: Path
) -> None:
    weights = load_file(checkpoint / "consolidated.safetensors")
    save_file(weights | {"norm.weight": torch.zeros(3)}, tmp_path / "consolidated.safetensors")
    for name in ("params.json", "tekken.json"):
        (tmp_path / name).symlink_to(checkpoint / name)
    engine = DecoderEngine(EngineOptions(tmp_path, dtype="float32", context_length=1024))
    try:
        with warnings.catch_warnings():
            # vLLM's own: at import, and of what it leaves open.
            warnings.simplefilter("ignore")
            with pytest.raises(EngineNotStarted) as failed:
                await engine.start()
    finally:
        await engine.shutdown()
    assert "Error" in str(failed.value)
    assert "torch.Size([3])" in str(failed.value)
    assert "\n" not in str(failed.value)
