"""Sampling parameters in vLLM's terms."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pixtral_core import limits
from pixtral_core.generation.sampling import Sampling

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.sampling_params import SamplingParams
    from vllm.tokenizers.mistral import MistralTokenizer
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

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


def test_a_request_may_skip_control_tokens_or_not_and_has_the_same_text(checkpoint: Path) -> None:
    """Once this fails, `skip_special_tokens` is a parameter to hand on."""
    tokenizer = MistralTokenizer.from_pretrained(str(checkpoint))
    texts = []
    for skips in (True, False):
        parameters = SamplingParams(skip_special_tokens=skips)
        request: Any = SimpleNamespace(
            request_id="", prompt_token_ids=[1], prompt_embeds=None, sampling_params=parameters
        )
        detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
        detokenizer.update([22177, *range(1, 40), 1044], False)
        texts.append(detokenizer.get_next_output_text(True, False))
    assert texts[0] == texts[1]
    assert "[TOOL_CALLS]" in texts[0]
