"""OpenAI's message list as a conversation."""

from collections.abc import Mapping, Sequence
from typing import Any

from pixtral_core.errors import InvalidRequest
from pixtral_gateway.api.openai.json_kinds import kind_of
from pixtral_gateway.api.openai.request_schema import ROLES, Message
from pixtral_gateway.api.openai.tools import to_call
from pixtral_gateway.checks.conversation import (
    Conversation,
    ImageSource,
    Part,
    Role,
    Thinking,
    Tools,
    Turn,
)
from pixtral_gateway.checks.validation import check_parts, conversation_of


def to_conversation(
    messages: Sequence[Message],
    tools: Tools,
    *,
    max_images: int,
    context_length: int,
    goes_on: bool = False,
    reasoning_effort: str | None = None,
) -> Conversation:
    """The conversation, under the rules of `pixtral_gateway.checks.validation`, as for gRPC.

    The answer continues the last message if `goes_on` (vLLM's `continue_final_message`) or
    Mistral's `prefix` is set. Raises InvalidRequest, with paths as OpenAI writes them.
    """
    parts = [len(m.content) if isinstance(m.content, list) else 1 for m in messages]
    check_parts(parts, context_length)
    for i, message in enumerate(messages[:-1]):
        if message.prefix:
            raise InvalidRequest(f"messages.{i}.prefix", "must be on the last message only")
    turns = tuple(_turn(message, f"messages.{i}") for i, message in enumerate(messages))
    if turns and messages[-1].prefix:
        if turns[-1].role is not Role.ASSISTANT:
            raise InvalidRequest(
                f"messages.{len(turns) - 1}.prefix", "must be on an assistant message"
            )
        goes_on = True
    return conversation_of(
        turns,
        max_images=max_images,
        tools=tools,
        goes_on=goes_on,
        reasoning_effort=reasoning_effort or "",
    )


def _turn(message: Message, path: str) -> Turn:
    if message.role == "function":
        raise _unsupported(f"{path}.role")
    role = ROLES.get(message.role)
    if role is None:
        raise InvalidRequest(f"{path}.role", "must be system, developer, user, assistant or tool")
    if message.function_call:
        raise _unsupported(f"{path}.function_call")
    if message.tool_calls and role is not Role.ASSISTANT:
        raise InvalidRequest(f"{path}.tool_calls", "only assistant messages may have tool calls")
    calls = tuple(
        to_call(call, f"{path}.tool_calls.{i}") for i, call in enumerate(message.tool_calls or ())
    )
    parts = (
        *_reasoning(message, path, role),
        *_parts(message.content, f"{path}.content", role),
    )
    if sum(isinstance(part, Thinking) for part in parts) > 1 and message.has_reasoning:
        raise InvalidRequest(
            f"{path}.content", "cannot have thinking parts beside reasoning: send one of the two"
        )
    return Turn(role, parts, calls, message.tool_call_id or "")


def _reasoning(message: Message, path: str, role: Role) -> tuple[Thinking, ...]:
    """The assistant's thought, from the field `reasoning` (vLLM's name) or `reasoning_content` (an
    older name)."""
    given = {message.reasoning, message.reasoning_content} - {None, ""}
    if role is not Role.ASSISTANT or not given:
        return ()
    if len(given) > 1:
        raise InvalidRequest(f"{path}.reasoning", "must be equal to reasoning_content")
    return (Thinking(str(given.pop())),)


def _parts(content: Any, path: str, role: Role) -> tuple[Part, ...]:
    match content:
        case None if role in (Role.ASSISTANT, Role.TOOL):
            return ()
        case str():
            # mistral_common ignores an empty string, but not a part with an empty text.
            return (content,) if content else ()
        case list():
            return tuple(_part(part, f"{path}.{i}", role) for i, part in enumerate(content))
    raise InvalidRequest(path, f"must be a text or a list of parts, not {kind_of(content)}")


def _part(part: Any, path: str, role: Role) -> Part:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "thinking"}:
            if role not in (Role.SYSTEM, Role.ASSISTANT):
                raise InvalidRequest(path, "only system and assistant messages may have thinking")
            return _thinking(part, f"{path}.thinking")
        case {"type": "image_url", "image_url": {"url": str(url)} | str(url) as given}:
            if role not in (Role.USER, Role.TOOL):
                raise InvalidRequest(
                    f"{path}.image_url", "only user and tool messages may have images"
                )
            low = isinstance(given, dict) and is_low_detail(given, f"{path}.image_url")
            return ImageSource(f"{path}.image_url", url=url, low_detail=low)
        case {"type": "text", **rest}:
            raise InvalidRequest(f"{path}.text", f"must be a text, not {kind_of(rest.get('text'))}")
        case {"type": "image_url", **rest}:
            raise InvalidRequest(
                f"{path}.image_url",
                f"must be a URL or an object with a url, not {kind_of(rest.get('image_url'))}",
            )
        case {"type": str()}:
            raise InvalidRequest(
                f"{path}.type", "must be text, image_url or thinking", "UNSUPPORTED_PARAMETER"
            )
        case dict():
            raise InvalidRequest(f"{path}.type", "is needed: text, image_url or thinking")
        case _:
            raise InvalidRequest(path, f"must be an object with a type, not {kind_of(part)}")


def _thinking(part: Mapping[str, Any], path: str) -> Thinking:
    """A thought in mistral_common's form, which is a text, or that of Mistral's API, a list of text
    parts."""
    is_closed = part.get("closed", True) is not False
    match part.get("thinking"):
        case str(text):
            return Thinking(text, is_closed)
        case list(texts) if all(isinstance(each, dict) for each in texts):
            found = [each.get("text") for each in texts]
            if all(isinstance(text, str) for text in found):
                return Thinking("".join(map(str, found)), is_closed)
    raise InvalidRequest(path, "must be a text or a list of text parts")


def is_low_detail(image: Mapping[str, Any], path: str) -> bool:
    """Whether an image has OpenAI's low detail. An image with any other detail is as large as the
    model accepts.

    Raises InvalidRequest.
    """
    match image.get("detail"):
        case None | "auto" | "high" | "original":
            return False
        case "low":
            return True
        case _:
            raise InvalidRequest(f"{path}.detail", "must be auto, low or high")


def _unsupported(path: str) -> InvalidRequest:
    return InvalidRequest(path, "is not supported", "UNSUPPORTED_PARAMETER")
