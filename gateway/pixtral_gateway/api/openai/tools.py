"""OpenAI's tools, tool choice and tool calls, to and from the gateway's own."""

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

from pixtral_core import limits
from pixtral_core.errors import InvalidRequest
from pixtral_gateway.api.openai.response_schema import Call, CallDelta
from pixtral_gateway.api.openai.schema_limits import Bounded
from pixtral_gateway.checks.conversation import ToolCall, ToolChoice, Tools
from pixtral_gateway.checks.tools import NAME, check_call, tools_of
from pixtral_gateway.request import ToolCallDelta

_MODES = {
    "auto": ToolChoice.AUTO,
    "none": ToolChoice.NONE,
    "required": ToolChoice.REQUIRED,
    # Mistral's name for `required`.
    "any": ToolChoice.REQUIRED,
}

# The values of `tool_choice`, as JSON Schema.
CHOICE = {
    "anyOf": [
        {"type": "null"},
        {"enum": list(_MODES)},
        {
            "type": "object",
            "properties": {
                "type": {"const": "function"},
                "function": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}},
                    "required": ["name"],
                },
            },
            "required": ["function"],
        },
    ]
}


def _as_text(schema: Any) -> str:
    # The schema is written here, because a large body is read in a thread and later steps are not.
    if not isinstance(schema, dict | None):
        raise ValueError("must be an object")
    return json.dumps(schema) if schema else ""


class Function(BaseModel):
    """`strict` changes nothing: the arguments of a tool that must be called always fit its
    schema."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Bounded(limits.TOOL_NAME, f"^{NAME.pattern}$")]
    description: str | None = None
    parameters: Annotated[
        str, BeforeValidator(_as_text, json_schema_input_type=dict[str, Any] | None)
    ] = ""


class ToolDefinition(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Annotated[str, WithJsonSchema({"const": "function"})] = "function"
    function: Function | None = None


def to_tools(
    tools: Sequence[ToolDefinition] | None, choice: Any, *, is_parallel: bool | None
) -> Tools:
    """The tools of a request that are in effect. Raises InvalidRequest."""
    given = []
    for i, tool in enumerate(tools or ()):
        if tool.type != "function":
            raise InvalidRequest(f"tools[{i}].type", "must be function", "UNSUPPORTED_PARAMETER")
        if tool.function is None:
            raise InvalidRequest(f"tools[{i}].function", "is needed")
        function = tool.function
        given.append((function.name, function.description or "", function.parameters))
    mode, named = _choice(choice)
    return tools_of(given, mode, named, is_single=is_parallel is False)


def to_call(call: Any, path: str) -> ToolCall:
    """A tool call in an assistant's message. Raises InvalidRequest."""
    match call:
        case {"function": {"name": str(name), **function}, **rest}:
            pass
        case _:
            raise InvalidRequest(path, "must be an object with a function that has a name")
    call_id, arguments = rest.get("id"), function.get("arguments")
    if isinstance(arguments, dict):
        # Mistral's client may send an object.
        arguments = json.dumps(arguments, ensure_ascii=False)
    if arguments is not None and not isinstance(arguments, str):
        raise InvalidRequest(f"{path}.arguments", "must be a text")
    if not isinstance(call_id, str):
        raise InvalidRequest(f"{path}.id", "must be a text")
    found = ToolCall(call_id, name, arguments or "")
    check_call(found, path)
    return found


def whole(calls: Iterable[ToolCallDelta]) -> list[Call]:
    """The tool calls of a message."""
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in calls
    ]


def deltas(pieces: Iterable[ToolCallDelta]) -> list[CallDelta]:
    """The parts of tool calls that a chunk adds."""
    return [
        {
            "index": piece.index,
            "id": piece.id,
            "type": "function",
            "function": {"name": piece.name, "arguments": piece.arguments},
        }
        if piece.id
        # Mistral's client accepts no call without a name. Other clients append the text to the
        # call's name.
        else {"index": piece.index, "function": {"name": "", "arguments": piece.arguments}}
        for piece in pieces
    ]


def _choice(choice: Any) -> tuple[ToolChoice, str | None]:
    match choice:
        case None:
            return ToolChoice.AUTO, None
        case str() if choice in _MODES:
            return _MODES[choice], None
        case {"function": {"name": str(name)}}:
            return ToolChoice.REQUIRED, name
        case _:
            raise InvalidRequest(
                "tool_choice", "must be none, auto, required, or a function with its name"
            )
