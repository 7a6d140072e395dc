"""The bodies of responses, and parts of messages, as /openapi.json describes them.

mypy checks the code that makes answers against these types; `messages` reads the messages.
"""

from typing import Annotated, Any, Literal, NotRequired

# Before Python 3.12, pydantic reads no other.
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
    """A `data:` URL in base64, or an `https:` one of a host that is allowed.

    In low detail the image has at most half the model's largest width and height.
    """

    url: str
    detail: NotRequired[Detail | None]


class TextPart(TypedDict):
    type: Literal["text"]
    text: str


class ThinkingPart(TypedDict):
    """In messages of role `system` and `assistant`, where the model thinks."""

    type: Literal["thinking"]
    thinking: str | list[TextPart]
    closed: NotRequired[bool]


class ImagePart(TypedDict):
    """In messages of role `user`."""

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
    """While an answer still comes, without the details."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: NotRequired[CachedTokens]
    # Where the model has thought.
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
    """Where the time of a request went."""

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
    """The first one of a call has its id, its type and its name."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: CalledFunction


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    # The model's thought before its answer, under vLLM's name for it and under the older one.
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
    """`stop_reason` is the stop string or the id of the stop token that ended it."""

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
    """With `include_usage`, the last one has no choices, and `usage` and `pixtral`.

    Without `stream_options`, the last one with a choice has them. With `return_token_ids`, the
    first one has `prompt_token_ids`.
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
    """How many answers and token counts run."""

    server_load: int


class Version(TypedDict):
    version: str
