"""How to pick tokens, in vLLM's terms, and what it refuses: all that differs by its version."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vllm import exceptions
from vllm.sampling_params import RequestOutputKind, SamplingParams

from services.decoder.sampling import Sampling

# What a caller got wrong is a ValueError up to vLLM 0.26, and mostly not from 0.27 on.
REFUSALS: tuple[type[Exception], ...] = (
    ValueError,
    getattr(exceptions, "VLLMClientError", ValueError),
)


def vllm_sampling(sampling: Sampling, defaults: Mapping[str, Any]) -> Any:
    """vLLM's SamplingParams. Raises one of REFUSALS where vLLM does not take a value."""
    given = {
        field.name: value
        for field in fields(sampling)
        if (value := getattr(sampling, field.name)) not in (None, (), {})
    }
    for name in ("stop", "stop_token_ids", "bad_words", "allowed_token_ids"):
        if name in given:
            given[name] = list(given[name])
    merged = {"max_tokens": None, **defaults, **given}
    return SamplingParams(**merged, output_kind=RequestOutputKind.DELTA)


def refused_field(error: Exception) -> str:
    """The path of the field that vLLM refuses, as far as it says."""
    name = getattr(error, "parameter", None)
    known = {field.name for field in fields(Sampling)}
    return f"sampling.{name}" if name in known else "sampling"
