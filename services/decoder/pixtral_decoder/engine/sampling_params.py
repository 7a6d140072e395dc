"""Sampling in vLLM's types, and the field that an engine's refusal names."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from pixtral_core.generation.sampling import Sampling, Structure, StructuredOutput
from pixtral_decoder.vllm_hooks.refusals import refused_parameter

# vLLM's own bound.
GREEDY_BELOW = 1e-5
# vLLM takes values beyond these and computes in float32, where they become zero and infinity, and
# logits NaN. At these bounds an answer is the same: below LEAST_TOP_P only the likeliest token is
# left, and beyond STRONGEST_PENALTY or its inverse a repeated token is certain or never comes.
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
        # It refuses more; see `copies`.
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
