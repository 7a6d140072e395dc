"""How vLLM refuses a sampling parameter."""

import warnings

import pytest

from pixtral_core.hooks import HookBroken
from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.sampling_params import SamplingParams

    from pixtral_decoder.vllm_hooks import refusals


def test_still_there() -> None:
    assert_still_there(refusals)


def test_an_exception_of_another_kind_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "REFUSALS", (KeyError,))
    with pytest.raises(HookBroken, match=r"vLLM refuses by VLLM\w+, which the hook"):
        refusals.check_upstream()


def test_a_refusal_without_a_name_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "refused_parameter", lambda _: None)
    with pytest.raises(HookBroken, match="vLLM refuses top_p without naming it, which the hook"):
        refusals.check_upstream()


def test_still_needed_while_a_refusal_is_no_value_error() -> None:
    """Once this fails, `except ValueError` does what `REFUSALS` is for."""
    with pytest.raises(refusals.REFUSALS) as refused:
        SamplingParams(temperature=-1.0)
    assert not isinstance(refused.value, ValueError)


def test_the_refused_parameter_is_named() -> None:
    with pytest.raises(refusals.REFUSALS) as refused:
        SamplingParams(temperature=-1.0)
    assert refusals.refused_parameter(refused.value) == "temperature"
    assert refusals.refused_parameter(ValueError()) is None
