"""Converts tools, tool choices and tool calls to those of `pixtral.v1`.

They have the forms of OpenAI's chat API:

    {"type": "function", "function": {"name": ..., "description": ..., "parameters": SCHEMA}}
    "auto", "none", "required" or {"type": "function", "function": {"name": ...}}
    {"id": ..., "type": "function", "function": {"name": ..., "arguments": JSON}}

A tool or a call may also be just the value of its `function`. Calls may also be the `tool_calls` of
an answer.
"""

import json
from collections.abc import Mapping
from typing import Any

from pixtral.v1 import chat_pb2
from pixtral_client.results import ToolCall

OPTIONS = ("tools", "tool_choice", "parallel_tool_calls")

_MODES = {
    "auto": chat_pb2.TOOL_CHOICE_MODE_AUTO,
    "none": chat_pb2.TOOL_CHOICE_MODE_NONE,
    "required": chat_pb2.TOOL_CHOICE_MODE_REQUIRED,
}


def tool_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request for the options of `OPTIONS`. Raises TypeError and ValueError."""
    fields: dict[str, Any] = {
        "tools": [_tool(tool, f"tools[{i}]") for i, tool in enumerate(options.get("tools") or ())]
    }
    if (choice := options.get("tool_choice")) is not None:
        fields["tool_choice"] = _choice(choice)
    if (is_parallel := options.get("parallel_tool_calls")) is not None:
        fields["parallel_tool_calls"] = is_parallel
    return fields


def to_call(call: Any, where: str) -> chat_pb2.ToolCall:
    if isinstance(call, ToolCall):
        return chat_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments)
    function = _function(call, where)
    arguments = function.get("arguments", "")
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return chat_pb2.ToolCall(
        id=_text(call, "id", where),
        name=_text(function, "name", where),
        arguments=_text({"arguments": arguments}, "arguments", where),
    )


def _tool(tool: Any, where: str) -> chat_pb2.Tool:
    function = _function(tool, where)
    parameters = function.get("parameters") or ""
    if not isinstance(parameters, str):
        parameters = json.dumps(parameters)
    return chat_pb2.Tool(
        name=_text(function, "name", where),
        description=function.get("description") or "",
        parameters=parameters,
    )


def _choice(choice: Any) -> chat_pb2.ToolChoice:
    if isinstance(choice, str):
        if choice not in _MODES:
            raise ValueError(f"tool_choice must be one of {', '.join(_MODES)}, or name a function")
        return chat_pb2.ToolChoice(mode=_MODES[choice])
    return chat_pb2.ToolChoice(name=_text(_function(choice, "tool_choice"), "name", "tool_choice"))


def _function(value: Any, where: str) -> Mapping[str, Any]:
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping):
        raise TypeError(f"{where} must be a dict with a 'function', or with the entries of one")
    return function


def _text(value: Mapping[str, Any], key: str, where: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise TypeError(f"{where}.{key} must be a string, not {type(text).__name__}")
    return text
