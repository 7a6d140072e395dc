"""Sampling in vLLM's types, and the field that an engine's refusal names."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from pixtral_core.generation.sampling import Sampling, Structure, StructuredOutput
from pixtral_decoder.vllm_hooks.refusals import refused_parameter

# vLLM decodes greedily below this temperature.
GREEDY_BELOW = 1e-5
# vLLM accepts more extreme values, but computes in float32: there they become zero or infinity, and
# logits become NaN. The decoder replaces such values by these bounds, at which the answer is the
# same: at LEAST_TOP_P only the likeliest token is left, and at STRONGEST_PENALTY or its inverse a
# repeated token never comes or is certain.
LEAST_TOP_P = 1e-9
STRONGEST_PENALTY = 1e30


def vllm_sampling(sampling: Sampling, defaults: Mapping[str, Any]) -> SamplingParams:
    """vLLM's SamplingParams. Raises one of REFUSALS if vLLM does not take a value."""
    given = {
        field.name: value
        for field in fields(sampling)
        if (value := getattr(sampling, field.name)) not in (None, (), {})
    }
    for name in ("stop", "stop_token_ids", "bad_words", "allowed_token_ids"):
        if name in given:
            given[name] = list(given[name])
    if wanted := given.pop("structured_output", None):
        given["structured_outputs"] = _structured(wanted)
    merged = {"max_tokens": None, **defaults, **given}
    if merged.get("temperature", 1.0) < GREEDY_BELOW:
        # vLLM refuses a greater n for greedy answers. `copies` makes up for it.
        merged["n"] = 1
    if "top_p" in merged:
        merged["top_p"] = max(merged["top_p"], LEAST_TOP_P)
    if "repetition_penalty" in merged:
        penalty = min(merged["repetition_penalty"], STRONGEST_PENALTY)
        merged["repetition_penalty"] = max(penalty, 1 / STRONGEST_PENALTY)
    return SamplingParams(**merged, output_kind=RequestOutputKind.DELTA)


def copies(sampling: Sampling, parameters: SamplingParams) -> int:
    """How many of the choices each choice of vLLM represents: greedy ones are all equal."""
    return sampling.n // parameters.n


def refused_field(error: Exception, sampling: Sampling) -> str:
    """The path of the field that vLLM refuses, if vLLM names it."""
    name = refused_parameter(error)
    if name in {field.name for field in fields(Sampling)}:
        return f"sampling.{name}"
    return "sampling" if sampling.structured_output is None else sampling.structured_output.path


def _structured(wanted: StructuredOutput) -> StructuredOutputsParams:
    match wanted.structure:
        case Structure.JSON_SCHEMA:
            return StructuredOutputsParams(
                json=wanted.values[0], disable_any_whitespace=wanted.disable_any_whitespace
            )
        case Structure.REGEX:
            return StructuredOutputsParams(regex=wanted.values[0])
        case Structure.CHOICE:
            return StructuredOutputsParams(choice=list(wanted.values))
        case Structure.GRAMMAR:
            return StructuredOutputsParams(grammar=wanted.values[0])
        case Structure.JSON_OBJECT:
            return StructuredOutputsParams(json_object=True)
