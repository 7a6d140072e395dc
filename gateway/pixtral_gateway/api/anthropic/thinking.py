"""Anthropic's `thinking` and `effort`, as far as the served model can follow them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from mistral_common.protocol.instruct.request import ReasoningEffort
from pydantic import BaseModel, ConfigDict

from pixtral_core import limits
from pixtral_core.errors import InvalidRequest
from pixtral_core.generation.sampling import Sampling
from pixtral_gateway.api.openai.request_schema import UInt32
from pixtral_gateway.prompt.prompt_encoder import ThinkingFormat

Effort = Literal["low", "medium", "high", "xhigh", "max"]

# In order, from no effort to the most.
_EFFORTS = [str(each) for each in ReasoningEffort]
_NONE = str(ReasoningEffort.none)
# Anthropic's default.
_USUAL: Effort = "high"


class SentThinking(BaseModel):
    """`budget_tokens` is ignored: it is a target that even Anthropic's models may miss. `display`
    changes nothing, as in vLLM.
    """

    model_config = ConfigDict(extra="ignore")

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: UInt32 | None = None
    display: str | None = None


def effort_of(thinking: SentThinking | None, effort: Effort | None, form: ThinkingFormat) -> str:
    """The effort for the model's template; empty means the template's own default.

    Raises InvalidRequest if the request requires a thought and the model cannot think.
    """
    kind = thinking.type if thinking is not None else None
    if kind == "enabled" and form.token_id is None:
        raise InvalidRequest(
            "thinking.type", "this model does not think: leave it out, or set disabled"
        )
    if kind == "disabled":
        return _NONE if _NONE in form.efforts else ""
    if kind is None and effort is None:
        return ""
    return _nearest(effort or _USUAL, form.efforts)


def without_thought(
    sampling: Sampling, thinking: SentThinking | None, form: ThinkingFormat
) -> Sampling:
    """The sampling parameters that prevent a thought.

    A model whose template has no place for an effort needs them: nothing else prevents its thought.
    """
    is_unwanted = thinking is not None and thinking.type == "disabled"
    if not is_unwanted or form.token_id is None or _NONE in form.efforts:
        return sampling
    lowest: Any = limits.LOGIT_BIAS_VALUE.low
    return replace(sampling, logit_bias={**sampling.logit_bias, form.token_id: lowest})


def _nearest(effort: str, known: Sequence[str]) -> str:
    """The least known effort that is not below the requested one; if all are below, the highest.
    Empty if no effort is known."""
    some = sorted((each for each in known if each != _NONE), key=_EFFORTS.index)
    at_least = [each for each in some if _EFFORTS.index(each) >= _EFFORTS.index(effort)]
    return next(iter(at_least), some[-1] if some else "")
