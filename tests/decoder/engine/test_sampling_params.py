"""Sampling parameters in vLLM's terms."""

import numpy as np
import pytest

from pixtral_core import limits
from pixtral_core.generation.sampling import Sampling
from pixtral_decoder.engine.sampling_params import vllm_sampling


@pytest.mark.parametrize("value", [5e-324, 1e-12, 1e-4, 1.0, 5000.0, 1e300])
def test_what_is_within_the_limits_is_a_number_in_float32(value: float) -> None:
    assert limits.REPETITION_PENALTY.allows(value)
    penalty = np.float32(vllm_sampling(Sampling(repetition_penalty=value), {}).repetition_penalty)
    # A logit divided or multiplied by it stays finite.
    assert 0 < np.float32(1000) / penalty < np.inf
    assert 0 < np.float32(1000) * penalty < np.inf
    if limits.TOP_P.allows(value):
        assert np.float32(vllm_sampling(Sampling(top_p=value), {}).top_p) > 0


@pytest.mark.parametrize("value", [1e-4, 1.0, 5000.0])
def test_ordinary_values_stay_as_they_are(value: float) -> None:
    parameters = vllm_sampling(Sampling(repetition_penalty=value, top_p=min(value, 1.0)), {})
    assert (parameters.repetition_penalty, parameters.top_p) == (value, min(value, 1.0))


def test_every_top_k_of_the_limits_is_taken() -> None:
    for top_k in (int(limits.TOP_K.low), int(limits.TOP_K.high)):
        assert vllm_sampling(Sampling(top_k=top_k), {}).top_k == top_k
