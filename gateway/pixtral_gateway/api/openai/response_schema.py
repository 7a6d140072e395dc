"""The bodies of responses, and parts of messages, as /openapi.json describes them.

mypy checks the code that makes answers against these types; `messages` reads the messages.
"""

from typing import Annotated, Any, Literal, NotRequired

# Before Python 3.12, pydantic needs this TypedDict, and not that of `typing`.
from typing_extensions import TypedDict

from pixtral_core import limits
from pixtral_gateway.api.openai.schema_limits import Bounded

FinishReason = Literal["stop", "length", "tool_calls"]
ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "rate_limit_error",
    "server_error",
]


Detail = Literal["auto", "low", "high", "original"]


class ImageUrl(TypedDict):
    """A `data:` URL in base64, or an `https:` URL of a host that the operator allows.

    In low detail, the model sees the image with at most half of its largest width and height.
    """

    url: str
    detail: NotRequired[Detail | None]


class TextPart(TypedDict):
    type: Literal["text"]
    text: str


class ThinkingPart(TypedDict):
    """In messages of role `system` and `assistant`, if the model thinks."""

    type: Literal["thinking"]
    thinking: str | list[TextPart]
    closed: NotRequired[bool]


class ImagePart(TypedDict):
    """In messages of role `user` and `tool`."""

    type: Literal["image_url"]
    image_url: ImageUrl | str


Content = str | list[TextPart | ImagePart | ThinkingPart] | None


class CalledBefore(TypedDict):
    name: Annotated[str, Bounded(limits.TOOL_NAME)]
    arguments: NotRequired[str | dict[str, Any] | None]


class ToolCall(TypedDict):
    """In messages of role `assistant`."""

    id: Annotated[str, Bounded(limits.TOOL_CALL_ID)]
    type: NotRequired[Literal["function"]]
    function: CalledBefore


class Error(TypedDict):
    """`param` is the path of the field that is wrong."""

    message: str
    type: ErrorType
    param: str | None
    code: str


class ErrorAnswer(TypedDict):
    error: Error


class CachedTokens(TypedDict):
    cached_tokens: int
    image_tokens: int


class ReasoningTokens(TypedDict):
    reasoning_tokens: int


class Usage(TypedDict):
    """The usage in the chunks of an unfinished answer has no details."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: NotRequired[CachedTokens]
    # This field is present only if the model has thought.
    completion_tokens_details: NotRequired[ReasoningTokens]


class Timings(TypedDict):
    queue_seconds: float
    encode_seconds: float
    time_to_first_token_seconds: float
    total_seconds: float


class ImageReport(TypedDict):
    sha256: str
    width: int
    height: int
    tokens: int
    cached: bool
    encode_seconds: float


class Report(TypedDict):
    """The times of a request's parts, and a report on each of its images."""

    timings: Timings
    images: list[ImageReport]


class Logprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(Logprob):
    top_logprobs: list[Logprob]


class Logprobs(TypedDict):
    content: list[TokenLogprobs]
    refusal: None


class PromptLogprob(TypedDict):
    logprob: float
    rank: int
    decoded_token: str


class CalledFunction(TypedDict):
    name: str
    arguments: str


class Call(TypedDict):
    id: str
    type: Literal["function"]
    function: CalledFunction


class CallDelta(TypedDict):
    """A part of a tool call. The first part has the call's id, type and name."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: CalledFunction


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    # The model's thought before its answer, under vLLM's name of the field and an older name.
    reasoning: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[Call]]


class Delta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[CallDelta]]


class Choice(TypedDict):
    """`stop_reason` is the stop string or the id of the stop token that ended the choice."""

    index: int
    message: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    token_ids: NotRequired[list[int]]


class ChunkChoice(TypedDict):
    index: int
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    token_ids: NotRequired[list[int]]


class Ending(TypedDict):
    usage: Usage
    pixtral: Report
    prompt_logprobs: NotRequired[list[dict[str, PromptLogprob] | None]]
    prompt_token_ids: NotRequired[list[int]]


class ChatCompletion(Ending):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]


class ChatCompletionChunk(TypedDict):
    """With `include_usage`, the last chunk has `usage` and `pixtral`, and no choices.

    Without `stream_options`, the last chunk with a choice has `usage` and `pixtral`. With
    `return_token_ids`, the first chunk has `prompt_token_ids`.
    """

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[Usage | None]
    pixtral: NotRequired[Report]
    prompt_token_ids: NotRequired[list[int]]


class Limits(TypedDict):
    max_images: int
    max_image_bytes: int
    max_image_pixels: int


class ModelCard(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    pixtral: Limits
    type: str
    capabilities: dict[str, bool]


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelCard]


class Tokens(TypedDict):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: None


class Text(TypedDict):
    prompt: str


class Load(TypedDict):
    """The number of answers and token counts that run."""

    server_load: int


class Version(TypedDict):
    version: str
