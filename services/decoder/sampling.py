"""How to pick the next token."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Sampling:
    """What is None takes the model's own default, from its generation_config.json, or vLLM's.

    The names and meanings are vLLM's. `max_tokens` None is as many as the context still holds.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def to_vllm(self, defaults: Mapping[str, Any]) -> Any:
        """vLLM's SamplingParams. Raises ValueError where vLLM refuses a value."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        given = {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        merged = {"max_tokens": None, **defaults, **given}
        merged["stop"] = list(self.stop)
        merged["stop_token_ids"] = list(self.stop_token_ids)
        return SamplingParams(**merged, output_kind=RequestOutputKind.DELTA)
