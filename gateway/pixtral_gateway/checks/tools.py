"""Checks of a request's tools, of tool calls in its messages, and of their results."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pixtral_core import limits
from pixtral_core.errors import InvalidRequest
from pixtral_core.generation.sampling import Sampling
from pixtral_gateway.checks.conversation import Role, Tool, ToolCall, ToolChoice, Tools, Turn
from pixtral_gateway.checks.structured_output import INCOMPATIBLE, read_schema

NAME = re.compile(f"[a-zA-Z0-9_-]{{{limits.TOOL_NAME.least},{limits.TOOL_NAME.most}}}")
NO_PARAMETERS: Mapping[str, Any] = {}


def tools_of(
    given: Sequence[tuple[str, str, str]],
    choice: ToolChoice,
    named: str | None = None,
    *,
    is_single: bool = False,
) -> Tools:
    """The tools in effect. Each entry of `given` is a name, a description, and a JSON Schema or an
    empty text.

    `named` is the tool that the model must call once. Raises InvalidRequest.
    """
    limits.TOOLS.check(len(given), "tools")
    characters = sum(len(text) for tool in given for text in tool)
    limits.TOOLS_CHARACTERS.check(characters, "tools")
    by_name: dict[str, Tool] = {}
    for i, (name, description, parameters) in enumerate(given):
        _check_name(name, f"tools[{i}].name")
        if name in by_name:
            raise InvalidRequest(f"tools[{i}].name", "another tool has this name")
        by_name[name] = Tool(name, description, _schema(parameters, f"tools[{i}].parameters"))
    offered = tuple(by_name.values())
    match choice:
        case ToolChoice.NONE:
            return Tools()
        case ToolChoice.AUTO:
            return Tools(offered, (), is_single, characters)
        case ToolChoice.REQUIRED:
            pass
    if not offered:
        raise InvalidRequest("tool_choice", "there are no tools to choose from")
    if named is None:
        return Tools(offered, offered, is_single, characters)
    if named not in by_name:
        raise InvalidRequest("tool_choice.name", "no tool has this name")
    return Tools(offered, (by_name[named],), True, characters)


def check_forced(sampling: Sampling) -> None:
    """Raises InvalidRequest for parameters that exclude a forced tool call."""
    given = [field for field in INCOMPATIBLE if getattr(sampling, field)]
    if sampling.structured_output is not None:
        given.append("structured_output")
    if given:
        raise InvalidRequest(
            f"sampling.{given[0]}", "cannot be combined with a tool choice that forces a tool call"
        )


def check_call(call: ToolCall, path: str) -> None:
    """Raises InvalidRequest for a tool call that no template accepts. The arguments may be any
    text."""
    _check_id(call.id, f"{path}.id")
    _check_name(call.name, f"{path}.name")


def check_calls(turns: Iterable[Turn]) -> None:
    """Raises InvalidRequest for too many tool calls in a message, and for a result that names no
    tool call.

    mistral_common checks which result belongs to which tool call.
    """
    for i, turn in enumerate(turns):
        limits.TOOL_CALLS.check(len(turn.calls), f"messages[{i}].tool_calls")
        if turn.role is Role.TOOL:
            _check_id(turn.call_id, f"messages[{i}].tool_call_id")


def _check_name(name: str, path: str) -> None:
    if not NAME.fullmatch(name):
        raise InvalidRequest(path, f"must have {limits.TOOL_NAME}: {limits.TOOL_NAME.description}")


def _check_id(call_id: str, path: str) -> None:
    limits.TOOL_CALL_ID.check(len(call_id), path)


def _schema(text: str, path: str) -> Mapping[str, Any]:
    if not text:
        return NO_PARAMETERS
    schema = read_schema(text, path)
    if schema.get("type", "object") != "object":
        raise InvalidRequest(path, "must be the schema of an object")
    if _has_unsorted(schema):
        raise InvalidRequest(
            path,
            f"the schema must have {limits.SCHEMA_LIST}: a longer list must have only texts "
            "or only numbers",
        )
    return schema


def _has_unsorted(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_unsorted, value.values()))
    if not isinstance(value, list):
        return False
    if limits.SCHEMA_LIST.allows(len(value)):
        return any(map(_has_unsorted, value))
    return not any(all(isinstance(each, kind) for each in value) for kind in (str, int | float))
