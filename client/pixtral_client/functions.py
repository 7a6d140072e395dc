"""Typed Python functions as tools, and the loop that calls them: `Client.run_tools`.

A function's name and docstring tell the model what the function does, and its annotations define
the parameters. The first paragraph of the docstring is the description. Lines `name: ...` below
`Args:` describe parameters, and so does text in `Annotated[T, "..."]`.

Parameters can be `str`, `int`, `float`, `bool`, `None`, `Any`, `Literal`, lists, dicts with `str`
keys, and unions of these. For other types, such as a pydantic model, a dataclass or an enum, the
client imports pydantic.
"""

import inspect
import json
import re
import types
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from pixtral_client.messages import Messages
from pixtral_client.results import Completion, ToolCall

DEFAULT_MAX_ROUNDS: Final = 10
_SCALARS: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    types.NoneType: "null",
}
_PARAMETER = re.compile(r"\*{0,2}(\w+)(?: \([^)]*\))?: +(.+)")

Function = Callable[..., Any]


class ToolError(Exception):
    """A tool raises it to report an error to the model, and the loop continues.

    Any other exception ends the loop.
    """


class TooManyRounds(RuntimeError):
    """The model still calls tools after `max_rounds` answers. `messages` is the conversation."""

    def __init__(self, rounds: int, messages: list[Mapping[str, Any]]) -> None:
        super().__init__(f"the model still calls tools after {rounds} answers: raise max_rounds")
        self.messages = messages


@dataclass(frozen=True, slots=True)
class ToolRun:
    """The end of a `run_tools`.

    Attributes:
        completion: the answer that calls no tool.
        messages: the whole conversation with that answer, to continue from.
    """

    completion: Completion
    messages: list[Mapping[str, Any]]

    @property
    def text(self) -> str:
        """The text of the answer."""
        return self.completion.text


@dataclass(frozen=True, slots=True)
class Ask:
    """The loop needs the `Completion` of these messages with these options."""

    messages: Messages
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """The loop needs this function's result, or its exception."""

    function: Function
    arguments: dict[str, Any]


class FunctionTool:
    """A function that a model can call.

    Raises TypeError if the function has a parameter of an unknown type.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.name = function.__name__
        documented = inspect.cleandoc(function.__doc__ or "")
        self._types: dict[str, Any] = {}
        properties: dict[str, Any] = {}
        required, definitions = [], {}
        described = _described(documented)
        hints = get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters.values():
            name, where = parameter.name, f"{self.name}({parameter.name})"
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise TypeError(f"{where}: a tool has named parameters only")
            if name not in hints:
                raise TypeError(f"{where}: a tool's parameter needs a type")
            schema = _schema(hints[name], where)
            definitions.update(schema.pop("$defs", {}))
            if name in described:
                schema.setdefault("description", described[name])
            if parameter.default is parameter.empty:
                required.append(name)
            properties[name] = schema
            self._types[name] = hints[name]
        self._required = required
        parameters: dict[str, Any] = {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }
        if definitions:
            parameters["$defs"] = definitions
        self.definition: dict[str, Any] = {
            "type": "function",
            "function": {
                "name": self.name,
                "description": documented.partition("\n\n")[0].replace("\n", " "),
                "parameters": parameters,
            },
        }

    def read(self, arguments: str) -> dict[str, Any]:
        """The arguments of a call as values. Raises ToolError, whose text goes to the model."""
        try:
            given = json.loads(arguments or "{}")
        except ValueError as error:
            raise ToolError(f"the arguments are not JSON: {error}") from None
        if not isinstance(given, dict):
            raise ToolError("the arguments must be a JSON object")
        if unknown := sorted(given.keys() - self._types.keys()):
            raise ToolError(f"there is no parameter {', '.join(unknown)}")
        if missing := [name for name in self._required if name not in given]:
            raise ToolError(f"missing: {', '.join(missing)}")
        return {name: _value(value, self._types[name], name) for name, value in given.items()}


def tool_loop(
    messages: Messages,
    functions: Sequence[Function],
    max_rounds: int,
    options: Mapping[str, Any],
) -> Generator[Ask | Run, Any, ToolRun]:
    """Asks, runs the tools that the answer calls, and asks again, until an answer calls none.

    It sends and runs nothing itself: a client sends it the result of each step. Raises
    TooManyRounds.
    """
    tools = {tool.name: tool for tool in map(FunctionTool, functions)}
    if len(tools) != len(functions):
        raise ValueError("two tools have the same name")
    if max_rounds < 1:
        raise ValueError("max_rounds must be at least 1")
    asked = {**options, "tools": [tool.definition for tool in tools.values()]}
    so_far: list[Mapping[str, Any]] = list(messages)
    for _ in range(max_rounds):
        completion = yield Ask(list(so_far), dict(asked))
        # The choice applies to the first answer. If repeated, it would force calls without end.
        asked.pop("tool_choice", None)
        so_far.append(_turn(completion))
        if not completion.tool_calls:
            return ToolRun(completion, so_far)
        for call in completion.tool_calls:
            result = yield from _result(call, tools)
            so_far.append({"role": "tool", "tool_call_id": call.id, "content": result})
    raise TooManyRounds(max_rounds, so_far)


def _result(call: ToolCall, tools: Mapping[str, FunctionTool]) -> Generator[Run, Any, str]:
    try:
        tool = tools.get(call.name)
        if tool is None:
            raise ToolError(f"there is no tool {call.name}")
        result = yield Run(tool.function, tool.read(call.arguments))
    except ToolError as error:
        return f"error: {error}"
    return result if isinstance(result, str) else json.dumps(result, default=_as_json)


def _turn(completion: Completion) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": "assistant", "content": completion.text}
    if completion.reasoning:
        turn["reasoning"] = completion.reasoning
    if completion.tool_calls:
        turn["tool_calls"] = list(completion.tool_calls)
    return turn


def _as_json(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"a tool must return text or a JSON value, not {type(value).__name__}")


def _described(documented: str) -> dict[str, str]:
    """The descriptions of parameters below `Args:`."""
    found: dict[str, str] = {}
    name, indent, is_inside = "", 0, False
    for line in documented.splitlines():
        text = line.strip()
        depth = len(line) - len(line.lstrip())
        if text in ("Args:", "Arguments:", "Parameters:"):
            is_inside, indent = True, 0
        elif is_inside and text and depth == 0:
            is_inside = False
        elif is_inside and text:
            indent = indent or depth
            if depth == indent and (match := _PARAMETER.match(text)):
                name = match[1]
                found[name] = match[2]
            elif name:
                found[name] += f" {text}"
    return found


def _schema(kind: Any, where: str) -> dict[str, Any]:
    """The JSON schema of a type."""
    if kind is Any:
        return {}
    if kind in _SCALARS:
        return {"type": _SCALARS[kind]}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        texts = [each for each in arguments[1:] if isinstance(each, str)]
        # Only pydantic understands other metadata, such as Field(ge=0).
        inner = arguments[0] if len(texts) == len(arguments) - 1 else kind
        schema = _schema(inner, where) if inner is not kind else _by_pydantic(kind, where)
        return {**schema, "description": texts[0]} if texts else schema
    if origin is Literal and all(type(each) in _SCALARS for each in arguments):
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return _hoisted({"anyOf": [_schema(each, where) for each in arguments]})
    if origin is list or kind is list:
        return _hoisted(
            {"type": "array", "items": _schema(arguments[0] if arguments else Any, where)}
        )
    if kind is dict or (origin is dict and arguments[0] is str):
        values = _schema(arguments[1] if arguments else Any, where)
        return _hoisted({"type": "object", "additionalProperties": values})
    return _by_pydantic(kind, where)


def _hoisted(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the definitions of its parts at its root, where references point."""
    definitions: dict[str, Any] = {}
    for part in (*schema.get("anyOf", ()), schema.get("items"), schema.get("additionalProperties")):
        if isinstance(part, dict):
            definitions.update(part.pop("$defs", {}))
    return {**schema, "$defs": definitions} if definitions else schema


def _value(value: Any, kind: Any, name: str) -> Any:
    """A JSON value as a value of the type. Raises ToolError if it does not fit."""
    if kind is Any:
        return value
    if kind in _SCALARS:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if kind is float and is_number:
            return float(value)
        if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
        raise ToolError(f"{name} must be of type {_SCALARS[kind]}")
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated and all(isinstance(each, str) for each in arguments[1:]):
        return _value(value, arguments[0], name)
    if origin is Literal and all(type(each) in _SCALARS for each in arguments):
        if value not in arguments:
            raise ToolError(f"{name} must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (Union, types.UnionType):
        return _one_of(value, arguments, name)
    if origin is list or kind is list:
        if not isinstance(value, list):
            raise ToolError(f"{name} must be a list")
        inner = arguments[0] if arguments else Any
        return [_value(each, inner, f"{name}[{i}]") for i, each in enumerate(value)]
    if kind is dict or (origin is dict and arguments[0] is str):
        if not isinstance(value, dict):
            raise ToolError(f"{name} must be an object")
        inner = arguments[1] if arguments else Any
        return {key: _value(each, inner, f"{name}.{key}") for key, each in value.items()}
    return _validated(value, kind, name)


def _one_of(value: Any, kinds: Sequence[Any], name: str) -> Any:
    wrong = []
    for kind in kinds:
        try:
            return _value(value, kind, name)
        except ToolError as error:
            wrong.append(str(error))
    raise ToolError("; or ".join(wrong))


def _by_pydantic(kind: Any, where: str) -> dict[str, Any]:
    try:
        from pydantic import TypeAdapter
        from pydantic.errors import PydanticUserError
    except ImportError:
        raise TypeError(
            f"{where}: to read {kind} as a tool's parameter needs pydantic: pip install pydantic"
        ) from None
    try:
        return TypeAdapter(kind).json_schema()
    except PydanticUserError as error:
        raise TypeError(f"{where}: {error}") from None


def _validated(value: Any, kind: Any, name: str) -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise ToolError(f"{name}: {error}") from None
