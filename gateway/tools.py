"""Checks of the tools that a request offers, and of how they are called and answered."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from gateway.conversation import Role, Tool, ToolCall, Tools, Turn
from gateway.structured import INCOMPATIBLE, read_schema
from pixtral.v1 import chat_pb2
from serving.errors import InvalidRequest

MAX_TOOLS = 128
# Of all tools together: they are checked against the schema of schemas.
MAX_CHARACTERS = 1 << 17
MAX_CALLS = 128
MAX_ID_LENGTH = 256
# The check of a schema compares each value of a longer list with every other, unless it can sort.
MAX_UNSORTED = 64

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
NO_PARAMETERS: Mapping[str, Any] = {}

Request: TypeAlias = (
    chat_pb2.CompleteRequest | chat_pb2.StreamCompleteRequest | chat_pb2.CountTokensRequest
)


def read_tools(request: Request) -> Tools:
    """The tools of a request, where its choice leaves them in effect. Raises InvalidRequest."""
    offered = [
        tool_of(tool.name, tool.description, tool.parameters, f"tools[{i}]")
        for i, tool in enumerate(request.tools)
    ]
    choice, named = request.tool_choice, ""
    match choice.WhichOneof("choice"):
        case "name":
            mode, named = chat_pb2.TOOL_CHOICE_MODE_REQUIRED, choice.name
            if not named:
                raise InvalidRequest("tool_choice.name", "must not be empty")
        case "mode":
            mode = choice.mode
        case _:
            mode = chat_pb2.TOOL_CHOICE_MODE_AUTO
    is_single = False
    if not isinstance(request, chat_pb2.CountTokensRequest):
        is_single = request.HasField("parallel_tool_calls") and not request.parallel_tool_calls
    return tools_of(offered, mode, named, is_single=is_single)


def tool_of(name: str, description: str, parameters: str, path: str) -> Tool:
    """One tool, `parameters` being empty or a JSON Schema. Raises InvalidRequest."""
    _check_name(name, f"{path}.name")
    return Tool(name, description, _schema(parameters, f"{path}.parameters"))


def tools_of(
    offered: list[Tool], mode: chat_pb2.ToolChoiceMode.ValueType, named: str, *, is_single: bool
) -> Tools:
    """What of the tools is in effect, `named` being the one that must be called, or empty.

    Raises InvalidRequest.
    """
    if len(offered) > MAX_TOOLS:
        raise InvalidRequest("tools", f"must hold at most {MAX_TOOLS}")
    by_name: dict[str, Tool] = {}
    for i, tool in enumerate(offered):
        if by_name.setdefault(tool.name, tool) is not tool:
            raise InvalidRequest(f"tools[{i}].name", "another tool has this name")
    characters = sum(
        len(tool.name) + len(tool.description) + len(json.dumps(tool.parameters))
        for tool in offered
    )
    if characters > MAX_CHARACTERS:
        raise InvalidRequest("tools", f"must have at most {MAX_CHARACTERS} characters in all")
    match mode:
        case chat_pb2.TOOL_CHOICE_MODE_NONE:
            return Tools()
        case chat_pb2.TOOL_CHOICE_MODE_AUTO:
            return Tools(tuple(offered), (), is_single, characters)
        case chat_pb2.TOOL_CHOICE_MODE_REQUIRED:
            pass
        case _:
            raise InvalidRequest("tool_choice.mode", "must be auto, none or required")
    if not offered:
        raise InvalidRequest("tool_choice", "there are no tools to choose from")
    if not named:
        return Tools(tuple(offered), tuple(offered), is_single, characters)
    if named not in by_name:
        raise InvalidRequest("tool_choice.name", "no tool has this name")
    return Tools(tuple(offered), (by_name[named],), True, characters)


def check_forced(sampling: chat_pb2.SamplingParams) -> None:
    """Raises InvalidRequest for what does not go together with a call that must be made."""
    given = [field for field in INCOMPATIBLE if getattr(sampling, field)]
    if sampling.HasField("structured_output"):
        given.append("structured_output")
    if given:
        raise InvalidRequest(
            f"sampling.{given[0]}", "not together with a tool choice that has a tool called"
        )


def whole_calls(pieces: Iterable[chat_pb2.ToolCall]) -> list[chat_pb2.ToolCall]:
    """The calls that an answer's deltas add up to."""
    calls: list[chat_pb2.ToolCall] = []
    arguments: list[list[str]] = []
    for piece in pieces:
        if piece.index == len(calls):
            calls.append(chat_pb2.ToolCall(id=piece.id, name=piece.name, index=piece.index))
            arguments.append([])
        arguments[piece.index].append(piece.arguments)
    for call, parts in zip(calls, arguments, strict=True):
        call.arguments = "".join(parts)
    return calls


def check_call(call: ToolCall, path: str) -> None:
    """Raises InvalidRequest for a call that no template takes. The arguments may be any text."""
    _check_id(call.id, f"{path}.id")
    _check_name(call.name, f"{path}.name")


def check_exchanges(turns: Iterable[Turn]) -> None:
    """Each call has an id of its own, and one result before anything else is said.

    Raises InvalidRequest where a result answers nothing, or a call has none.
    """
    asked, waiting = "", set[str]()
    for i, turn in enumerate(turns):
        if turn.role is Role.TOOL:
            _check_id(turn.call_id, f"messages[{i}].tool_call_id")
            if turn.call_id not in waiting:
                raise InvalidRequest(
                    f"messages[{i}].tool_call_id", "no call before it waits for a result"
                )
            waiting.discard(turn.call_id)
            continue
        if waiting:
            raise InvalidRequest(asked, "each needs a result in the messages that follow")
        asked = f"messages[{i}].tool_calls"
        if len(turn.calls) > MAX_CALLS:
            raise InvalidRequest(asked, f"must hold at most {MAX_CALLS}")
        for k, call in enumerate(turn.calls):
            if call.id in waiting:
                raise InvalidRequest(f"{asked}[{k}].id", "another call has this id")
            waiting.add(call.id)
    if waiting:
        raise InvalidRequest(asked, "each needs a result in the messages that follow")


def _check_name(name: str, path: str) -> None:
    if not NAME.fullmatch(name):
        raise InvalidRequest(path, "must be 1 to 64 letters, digits, underscores and dashes")


def _check_id(call_id: str, path: str) -> None:
    if not 0 < len(call_id) <= MAX_ID_LENGTH:
        raise InvalidRequest(path, f"must have 1 to {MAX_ID_LENGTH} characters")


def _schema(text: str, path: str) -> Mapping[str, Any]:
    if not text:
        return NO_PARAMETERS
    schema = read_schema(text, path)
    if schema.get("type", "object") != "object":
        raise InvalidRequest(path, "must be the schema of an object")
    if _has_unsorted(schema):
        raise InvalidRequest(
            path, f"a list of more than {MAX_UNSORTED} must hold texts alone, or numbers alone"
        )
    return schema


def _has_unsorted(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_unsorted, value.values()))
    if not isinstance(value, list):
        return False
    if len(value) > MAX_UNSORTED:
        kinds = {str if isinstance(each, str) else float for each in value if _is_plain(each)}
        return len(kinds) != 1 or not all(map(_is_plain, value))
    return any(map(_has_unsorted, value))


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)
