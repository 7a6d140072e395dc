"""The bodies of completions, as /openapi.json describes them."""

from typing import Literal, NotRequired

# Before Python 3.12, pydantic needs this TypedDict, and not that of `typing`.
from typing_extensions import TypedDict

from pixtral_gateway.api.openai.response_schema import FinishReason, PromptLogprob, Report, Usage


class CompletionLogprobs(TypedDict):
    """Four lists of the same length, with one entry for each token."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    prompt_token_ids: NotRequired[list[int]]
    token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[list[dict[str, PromptLogprob] | None]]


class Completion(TypedDict):
    """`pixtral` is in the answer to a request with one prompt only."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    pixtral: NotRequired[Report]


class CompletionChunk(TypedDict):
    """With `include_usage`, the last chunk has `usage` and `pixtral`, and no choices."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]
    pixtral: NotRequired[Report]
