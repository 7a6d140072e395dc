"""OpenAI's message list as a conversation."""

from collections.abc import Sequence
from typing import Any

from pixtral_core.errors import InvalidRequest
from pixtral_gateway.api.openai.request_schema import ROLES, Message
from pixtral_gateway.api.openai.tools import to_call
from pixtral_gateway.checks.conversation import Conversation, ImageSource, Role, Tools, Turn
from pixtral_gateway.checks.validation import check_parts, conversation_of


def to_conversation(
    messages: Sequence[Message], tools: Tools, *, max_images: int, context_length: int
) -> Conversation:
    """The conversation, under the rules that `pixtral_gateway.checks.validation` has for gRPC.

    Raises InvalidRequest, with paths as OpenAI writes them.
    """
    parts = [len(m.content) if isinstance(m.content, list) else 1 for m in messages]
    check_parts(parts, context_length)
    turns = tuple(_turn(message, f"messages.{i}") for i, message in enumerate(messages))
    return conversation_of(turns, max_images=max_images, tools=tools)


def _turn(message: Message, path: str) -> Turn:
    if message.role == "function":
        raise _unsupported(f"{path}.role")
    role = ROLES.get(message.role)
    if role is None:
        raise InvalidRequest(f"{path}.role", "must be system, user, assistant or tool")
    for name, value in (("function_call", message.function_call), ("prefix", message.prefix)):
        if value:
            raise _unsupported(f"{path}.{name}")
    if message.tool_calls and role is not Role.ASSISTANT:
        raise InvalidRequest(f"{path}.tool_calls", "only assistant messages may hold calls")
    calls = tuple(
        to_call(call, f"{path}.tool_calls.{i}") for i, call in enumerate(message.tool_calls or ())
    )
    if (calls or role is Role.TOOL) and not message.content:
        return Turn(role, (), calls, message.tool_call_id or "")
    parts = _parts(message.content, f"{path}.content", role)
    return Turn(role, parts, calls, message.tool_call_id or "")


def _parts(content: Any, path: str, role: Role) -> tuple[str | ImageSource, ...]:
    if isinstance(content, str):
        return (_text(content, path, role),)
    if content is not None and not isinstance(content, list):
        raise InvalidRequest(path, "must be text or a list of parts")
    if not content:
        raise InvalidRequest(path, "must not be empty")
    return tuple(_part(part, f"{path}.{i}", role) for i, part in enumerate(content))


def _part(part: Any, path: str, role: Role) -> str | ImageSource:
    match part:
        case {"type": "text", "text": text}:
            return _text(text, f"{path}.text", role)
        case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
            if role is not Role.USER:
                raise InvalidRequest(f"{path}.image_url", "only user messages may hold images")
            return ImageSource(f"{path}.image_url", url=url)
        case {"type": "text" | "image_url" as kind}:
            expected = "a text" if kind == "text" else "a URL, or an object with one"
            raise InvalidRequest(f"{path}.{kind}", f"must be {expected}")
        case {"type": str()}:
            raise InvalidRequest(
                f"{path}.type", "must be text or image_url", "UNSUPPORTED_PARAMETER"
            )
        case _:
            raise InvalidRequest(path, "must be an object with a type")


def _text(text: Any, path: str, role: Role) -> str:
    if not isinstance(text, str):
        raise InvalidRequest(path, "must be a text")
    # A tool may give nothing back.
    if not text and role is not Role.TOOL:
        raise InvalidRequest(path, "must not be empty")
    return text


def _unsupported(path: str) -> InvalidRequest:
    return InvalidRequest(path, "is not supported", "UNSUPPORTED_PARAMETER")
