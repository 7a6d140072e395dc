"""The dtype of the language model on a CPU without instructions for bfloat16."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pixtral_core.cache.wire_format import DType
from pixtral_decoder.engine import compute_dtype, engine_args
from pixtral_decoder.engine.engine_args import EngineOptions
from pixtral_decoder.process import _engine_options
from pixtral_decoder.settings import DecoderSettings
from tests.support import poorer_cpu

ON_A_POORER_CPU = """
from pixtral_decoder.engine.compute_dtype import imitates_bfloat16
print(imitates_bfloat16())
"""


@pytest.fixture(autouse=True)
def measured_anew() -> Iterator[None]:
    compute_dtype.imitates_bfloat16.cache_clear()
    yield
    compute_dtype.imitates_bfloat16.cache_clear()


@pytest.mark.parametrize(("slower", "imitates"), [(0.5, False), (2.0, False), (5.0, True)])
def test_bfloat16_is_imitated_where_float32_is_much_faster(
    monkeypatch: pytest.MonkeyPatch, slower: float, imitates: bool
) -> None:
    seconds = {torch.float32: 1.0, torch.bfloat16: slower}
    monkeypatch.setattr(compute_dtype, "_seconds", seconds.__getitem__)
    assert compute_dtype.imitates_bfloat16() is imitates


@poorer_cpu.needs_x86
def test_this_cpu_without_its_bfloat16_imitates_it() -> None:
    assert poorer_cpu.printed(ON_A_POORER_CPU) == "True"


@pytest.mark.parametrize(
    ("settings", "imitates", "expected"),
    [
        ({}, True, "float32"),
        ({}, False, "bfloat16"),
        ({"compute_dtype": DType.BF16}, True, "bfloat16"),
        ({"compute_dtype": DType.F32}, False, "float32"),
        ({"dtype": DType.F32}, False, "float32"),
        ({"engine_args": {"quantization": "fp8"}}, True, "bfloat16"),
    ],
)
def test_vllm_is_given_what_the_cpu_multiplies_unless_a_setting_says_otherwise(
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    imitates: bool,
    expected: str,
) -> None:
    monkeypatch.setattr(engine_args, "imitates_bfloat16", lambda: imitates)
    options = _engine_options(DecoderSettings(model_dir=checkpoint, **settings))
    with warnings.catch_warnings():
        # vLLM's own, at import.
        warnings.simplefilter("ignore")
        assert engine_args.engine_args(options).dtype == expected


def test_options_that_do_not_ask_for_it_are_left_alone(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_args, "imitates_bfloat16", lambda: True)
    assert engine_args.engine_args(EngineOptions(checkpoint, "bfloat16")).dtype == "bfloat16"
