"""The bodies of answers in Anthropic's form, as /openapi.json describes them."""

from typing import Any, Literal, NotRequired

# Before Python 3.12, pydantic needs this TypedDict, and not that of `typing`.
from typing_extensions import TypedDict

from pixtral_gateway.api.openai.response_schema import Report

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
MessageErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "api_error",
    "overloaded_error",
    "timeout_error",
]


class MessageErrorDetail(TypedDict):
    type: MessageErrorType
    message: str


class MessageError(TypedDict):
    type: Literal["error"]
    error: MessageErrorDetail


class TextBlock(TypedDict):
    type: Literal["text"]
    text: str


class ThinkingBlock(TypedDict):
    """The signature is empty, because the gateway accepts a thought that is sent back without a
    check."""

    type: Literal["thinking"]
    thinking: str
    signature: Literal[""]


class ToolUseBlock(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(TypedDict):
    """`input_tokens` does not include the tokens that came from the prefix cache."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageAnswer(TypedDict):
    """`pixtral` is in a message that has ended."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    pixtral: NotRequired[Report]


class MessageStart(TypedDict):
    type: Literal["message_start"]
    message: MessageAnswer


class BlockStart(TypedDict):
    type: Literal["content_block_start"]
    index: int
    content_block: TextBlock | ThinkingBlock | ToolUseBlock


class TextPiece(TypedDict):
    type: Literal["text_delta"]
    text: str


class ThinkingPiece(TypedDict):
    type: Literal["thinking_delta"]
    thinking: str


class JsonPiece(TypedDict):
    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(TypedDict):
    type: Literal["content_block_delta"]
    index: int
    delta: TextPiece | ThinkingPiece | JsonPiece


class BlockStop(TypedDict):
    type: Literal["content_block_stop"]
    index: int


class Stop(TypedDict):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(TypedDict):
    type: Literal["message_delta"]
    delta: Stop
    usage: MessageUsage
    pixtral: Report


class MessageStop(TypedDict):
    type: Literal["message_stop"]


MessageEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop


class TokenCount(TypedDict):
    input_tokens: int


class SentText(TypedDict):
    type: Literal["text"]
    text: str


class Base64Source(TypedDict):
    type: Literal["base64"]
    media_type: str
    data: str


class UrlSource(TypedDict):
    type: Literal["url"]
    url: str


class SentImage(TypedDict):
    """In messages of role `user`, and in results of tools."""

    type: Literal["image"]
    source: Base64Source | UrlSource


class SentToolUse(TypedDict):
    """In messages of role `assistant`."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class SentToolResult(TypedDict):
    """In messages of role `user`. `is_error` changes nothing, because the text of the result says
    that it is an error."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: NotRequired[str | list[SentText | SentImage] | None]


class SentThinking(TypedDict):
    """In messages of role `assistant`. A model that thinks sees the thought; a redacted thought is
    ignored."""

    type: Literal["thinking", "redacted_thinking"]
    thinking: NotRequired[str]


SentContent = str | list[SentText | SentImage | SentToolUse | SentToolResult | SentThinking]
