"""Messages of `pixtral.v1` as the gateway's own data."""

import re
from collections.abc import Sequence

from pixtral.v1 import chat_pb2
from pixtral_core.errors import InvalidRequest
from pixtral_gateway.checks.conversation import (
    NO_TOOLS,
    Conversation,
    ImageSource,
    Part,
    Role,
    Thinking,
    ToolCall,
    ToolChoice,
    Tools,
    Turn,
)
from pixtral_gateway.checks.tools import check_call, tools_of
from pixtral_gateway.checks.validation import conversation_of

ROLES: dict[int, Role] = {
    chat_pb2.ROLE_SYSTEM: Role.SYSTEM,
    chat_pb2.ROLE_USER: Role.USER,
    chat_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
    chat_pb2.ROLE_TOOL: Role.TOOL,
}
TOOL_CHOICES: dict[int, ToolChoice] = {
    chat_pb2.TOOL_CHOICE_MODE_AUTO: ToolChoice.AUTO,
    chat_pb2.TOOL_CHOICE_MODE_NONE: ToolChoice.NONE,
    chat_pb2.TOOL_CHOICE_MODE_REQUIRED: ToolChoice.REQUIRED,
}
# Whether the model sees the image in low detail.
DETAILS: dict[int, bool] = {
    chat_pb2.IMAGE_DETAIL_UNSPECIFIED: False,
    chat_pb2.IMAGE_DETAIL_LOW: True,
    chat_pb2.IMAGE_DETAIL_HIGH: False,
}
_SHA256 = re.compile("[0-9a-f]{64}")


def read_conversation(
    messages: Sequence[chat_pb2.Message],
    *,
    max_images: int,
    tools: Tools = NO_TOOLS,
    goes_on: bool = False,
    reasoning_effort: str = "",
) -> Conversation:
    """The conversation, with images in user messages only. Raises InvalidRequest."""
    turns = tuple(_turn(message, f"messages[{i}]") for i, message in enumerate(messages))
    return conversation_of(
        turns,
        max_images=max_images,
        tools=tools,
        goes_on=goes_on,
        reasoning_effort=reasoning_effort,
    )


def read_tools(chat: chat_pb2.Chat) -> Tools:
    """The tools of a chat that its tool choice leaves in effect. Raises InvalidRequest."""
    given = [(tool.name, tool.description, tool.parameters) for tool in chat.tools]
    is_single = chat.HasField("parallel_tool_calls") and not chat.parallel_tool_calls
    match chat.tool_choice.WhichOneof("choice"):
        case "name":
            return tools_of(given, ToolChoice.REQUIRED, chat.tool_choice.name)
        case "mode":
            choice = TOOL_CHOICES.get(chat.tool_choice.mode)
            if choice is None:
                raise InvalidRequest("tool_choice.mode", "must be auto, none or required")
            return tools_of(given, choice, is_single=is_single)
        case _:
            return tools_of(given, ToolChoice.AUTO, is_single=is_single)


def _turn(message: chat_pb2.Message, path: str) -> Turn:
    role = ROLES.get(message.role)
    if role is None:
        raise InvalidRequest(f"{path}.role", "must be system, user, assistant or tool")
    if message.tool_calls and role is not Role.ASSISTANT:
        raise InvalidRequest(f"{path}.tool_calls", "only assistant messages may have tool calls")
    if message.tool_call_id and role is not Role.TOOL:
        raise InvalidRequest(f"{path}.tool_call_id", "only tool messages may answer a tool call")
    calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls)
    for i, call in enumerate(calls):
        check_call(call, f"{path}.tool_calls[{i}]")
    parts = tuple(
        _part(part, f"{path}.content[{i}]", message.role) for i, part in enumerate(message.content)
    )
    return Turn(role, parts, calls, message.tool_call_id)


def _part(part: chat_pb2.ContentPart, path: str, role: int) -> Part:
    match part.WhichOneof("part"):
        case "text":
            return part.text
        case "thinking":
            if role not in (chat_pb2.ROLE_SYSTEM, chat_pb2.ROLE_ASSISTANT):
                raise InvalidRequest(
                    f"{path}.thinking", "only system and assistant messages may have thinking"
                )
            return Thinking(part.thinking)
        case "image":
            if role not in (chat_pb2.ROLE_USER, chat_pb2.ROLE_TOOL):
                raise InvalidRequest(f"{path}.image", "only user and tool messages may have images")
            return _image(part.image, f"{path}.image")
        case _:
            raise InvalidRequest(path, "must be text, an image or thinking")


def _image(image: chat_pb2.Image, path: str) -> ImageSource:
    if image.detail not in DETAILS:
        raise InvalidRequest(f"{path}.detail", "must be low or high")
    low = DETAILS[image.detail]
    match image.WhichOneof("source"):
        case "data":
            return ImageSource(f"{path}.data", data=image.data, low_detail=low)
        case "url":
            return ImageSource(f"{path}.url", url=image.url, low_detail=low)
        case "sha256":
            if not _SHA256.fullmatch(image.sha256):
                raise InvalidRequest(f"{path}.sha256", "must be 64 of 0-9 and a-f")
            sha256 = bytes.fromhex(image.sha256)
            return ImageSource(f"{path}.sha256", sha256=sha256, low_detail=low)
        case _:
            raise InvalidRequest(path, "must have data, a URL or a SHA-256")
