"""The bodies of responses and their events, as /openapi.json describes them."""

from typing import Any, Literal, NotRequired

# Before Python 3.12, pydantic needs this TypedDict, and not that of `typing`.
from typing_extensions import TypedDict

from pixtral_gateway.api.openai.response_schema import Detail, Report, TokenLogprobs

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprobs]


class OutputMessage(TypedDict):
    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputText]


class OutputCall(TypedDict):
    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


class ReasoningText(TypedDict):
    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(TypedDict):
    """The model's thought before the items that follow."""

    type: Literal["reasoning"]
    id: str
    summary: list[Any]
    content: list[ReasoningText]
    status: ItemStatus


OutputItem = OutputMessage | OutputCall | OutputReasoning


class InputTokensDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int
    image_tokens: int


class OutputTokensDetails(TypedDict):
    reasoning_tokens: int


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(TypedDict):
    reason: Literal["max_output_tokens"]


class ResponseError(TypedDict):
    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class Response(TypedDict):
    """A response repeats the request's fields unchanged. It has `pixtral` once it has ended."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: ResponseStatus
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    background: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, Any]
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float | None
    text: dict[str, Any]
    tool_choice: Any
    tools: list[Any]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"]
    user: str | None
    pixtral: NotRequired[Report]


class _Event(TypedDict):
    sequence_number: int


class ResponseEvent(_Event):
    """An event of the whole response: the last one says how the response ended."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: Response


class OutputItemEvent(_Event):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class _ItemEvent(_Event):
    item_id: str
    output_index: int


class ContentPartEvent(_ItemEvent):
    type: Literal["response.content_part.added", "response.content_part.done"]
    content_index: int
    part: OutputText | ReasoningText


class TextDeltaEvent(_ItemEvent):
    type: Literal["response.output_text.delta"]
    content_index: int
    delta: str
    logprobs: list[TokenLogprobs]


class TextDoneEvent(_ItemEvent):
    type: Literal["response.output_text.done"]
    content_index: int
    text: str
    logprobs: list[TokenLogprobs]


class ArgumentsDeltaEvent(_ItemEvent):
    type: Literal["response.function_call_arguments.delta"]
    delta: str


class ArgumentsDoneEvent(_ItemEvent):
    type: Literal["response.function_call_arguments.done"]
    name: str
    arguments: str


class ReasoningDeltaEvent(_ItemEvent):
    type: Literal["response.reasoning_text.delta"]
    content_index: int
    delta: str


class ReasoningDoneEvent(_ItemEvent):
    type: Literal["response.reasoning_text.done"]
    content_index: int
    text: str


StreamEvent = (
    ResponseEvent
    | OutputItemEvent
    | ContentPartEvent
    | TextDeltaEvent
    | TextDoneEvent
    | ArgumentsDeltaEvent
    | ArgumentsDoneEvent
    | ReasoningDeltaEvent
    | ReasoningDoneEvent
)


class InputText(TypedDict):
    """A text. Messages of role `assistant` have `output_text`."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class InputRefusal(TypedDict):
    type: Literal["refusal"]
    refusal: str


class InputImage(TypedDict):
    """Messages of role `user` and results of tool calls may have images."""

    type: Literal["input_image"]
    image_url: str
    detail: NotRequired[Detail | None]


InputContent = str | list[InputText | InputImage | InputRefusal]


class InputMessage(TypedDict):
    type: NotRequired[Literal["message"]]
    role: Literal["user", "assistant", "system", "developer"]
    content: InputContent | None


class InputCall(TypedDict):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class InputCallOutput(TypedDict):
    type: Literal["function_call_output"]
    call_id: str
    output: InputContent


class InputReasoning(TypedDict):
    """A model that thinks gets this thought in its prompt. The gateway ignores an item without
    `content`."""

    type: Literal["reasoning"]
    content: NotRequired[list[ReasoningText] | None]


InputItem = InputMessage | InputCall | InputCallOutput | InputReasoning
