"""The body of POST /v1/responses."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from pixtral_core import limits
from pixtral_core.errors import InvalidRequest
from pixtral_core.generation.sampling import Structure, StructuredOutput
from pixtral_gateway.api.field_names import renamed
from pixtral_gateway.api.openai.request_schema import SamplingBody, UInt32
from pixtral_gateway.api.openai.responses.response_schema import InputItem
from pixtral_gateway.api.openai.schema_limits import Bounded
from pixtral_gateway.checks.conversation import ToolChoice, Tools
from pixtral_gateway.checks.tools import tools_of

# Tools that OpenAI's own servers run. The gateway does not put them into the prompt, as in vLLM.
HOSTED = (
    "web_search",
    "web_search_preview",
    "file_search",
    "code_interpreter",
    "image_generation",
    "mcp",
    "computer",
    "computer_use_preview",
    "local_shell",
    "shell",
)
_KEEPS_NONE = "is not supported: this gateway keeps no responses"
LOGPROBS = "message.output_text.logprobs"

_CHOICES = {
    "auto": ToolChoice.AUTO,
    "none": ToolChoice.NONE,
    "required": ToolChoice.REQUIRED,
}
_CHOICE = {
    "anyOf": [
        {"type": "null"},
        {"enum": list(_CHOICES)},
        {
            "type": "object",
            "properties": {"type": {"const": "function"}, "name": {"type": "string"}},
            "required": ["type", "name"],
        },
        {
            "type": "object",
            "properties": {
                "type": {"const": "allowed_tools"},
                "mode": {"enum": ["auto", "required"]},
                "tools": {"type": "array", "items": {"type": "object"}},
            },
            "required": ["type", "mode", "tools"],
        },
    ]
}
_TOOL = {
    "type": "object",
    "properties": {
        "type": {"enum": ["function", *HOSTED]},
        "name": {"type": "string"},
        "description": {"type": ["string", "null"]},
        "parameters": {"type": ["object", "null"]},
    },
    "required": ["type"],
}


def _as_it_is(value: Any) -> Any:
    # The code that reads the field checks it, and names the wrong part. The type is for
    # /openapi.json only.
    return value


class TextFormat(BaseModel):
    """The format of the text. The response repeats all its fields, such as its name."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"]
    # The name is not `schema`, because pydantic has a method of that name.
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class TextConfig(BaseModel):
    model_config = ConfigDict(extra="allow")

    format: TextFormat | None = None


class ResponsesRequest(SamplingBody):
    """Each request is complete: `store` is ignored, and references to responses are refused."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "background": (False,),
        "conversation": (),
        "enable_response_messages": (False,),
        "n": (1,),
        "previous_input_messages": ([],),
        "previous_response_id": ("",),
        "prompt": (),
        "truncation": ("disabled",),
    }
    reasons: ClassVar[Mapping[str, str]] = {
        "background": f"{_KEEPS_NONE}; stream the answer",
        "conversation": f"{_KEEPS_NONE}; send the whole conversation as input",
        "previous_input_messages": "is not supported: send all messages as input",
        "previous_response_id": f"{_KEEPS_NONE}; send the whole conversation as input",
        "truncation": "must be disabled: no part of an input is dropped; send a shorter one",
    }

    input: str | list[Annotated[Any, BeforeValidator(_as_it_is, json_schema_input_type=InputItem)]]
    instructions: str | None = None
    max_output_tokens: Annotated[UInt32 | None, Bounded(limits.MAX_TOKENS)] = None
    text: TextConfig | None = None
    tools: Annotated[
        list[Annotated[dict[str, Any], WithJsonSchema(_TOOL)]] | None, Bounded(limits.TOOLS)
    ] = None
    tool_choice: Annotated[Any, WithJsonSchema(_CHOICE)] = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[UInt32 | None, Bounded(limits.LOGPROBS)] = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] | None = None
    reasoning: dict[str, Any] | None = None
    user: str | None = None

    # vLLM's field, which becomes the id of the answer.
    request_id: Annotated[str | None, Bounded(limits.REQUEST_ID)] = None

    def reasoning_effort(self) -> str:
        """The effort, for templates that use it; empty if the request has none."""
        effort = (self.reasoning or {}).get("effort")
        return effort if isinstance(effort, str) else ""

    def answer_id(self, own: str) -> str:
        """The id of the answer. Raises InvalidRequest."""
        if not self.request_id:
            return own
        limits.REQUEST_ID.check(len(self.request_id), "request_id")
        return self.request_id

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def own_values(self) -> dict[str, Any]:
        values: dict[str, Any] = {"max_tokens": self.max_output_tokens}
        if self.wants_logprobs:
            values["logprobs"] = self.top_logprobs or 0
        elif self.top_logprobs:
            raise InvalidRequest("top_logprobs", f"needs {LOGPROBS} in include")
        return values

    def name_of(self, field: str) -> str:
        match field:
            case "sampling.max_tokens":
                return "max_output_tokens"
            case "sampling.logprobs":
                return "top_logprobs"
            case _:
                return super().name_of(field)

    def format_field(self) -> str:
        return "text.format"

    def of_format(self) -> StructuredOutput | None:
        wanted = self.text.format if self.text is not None else None
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return StructuredOutput(Structure.JSON_OBJECT)
        if wanted.schema_ is None:
            raise InvalidRequest("text.format.schema", "is needed")
        return StructuredOutput(Structure.JSON_SCHEMA, (json.dumps(wanted.schema_),))

    def called_tools(self) -> Tools:
        """The tools that the model may call. Raises InvalidRequest."""
        mode, named, allowed = self._choice()
        given, indexes = [], []
        for i, tool in enumerate(self.tools or ()):
            kind = tool.get("type")
            if kind in HOSTED:
                continue
            if kind != "function":
                raise InvalidRequest(
                    f"tools[{i}].type", "must be function", "UNSUPPORTED_PARAMETER"
                )
            function = _function(tool, i)
            if allowed is None or function[0] in allowed:
                given.append(function)
                indexes.append(i)

        def name_of(field: str) -> str:
            index, bracket, rest = field.removeprefix("tools[").partition("]")
            return f"tools[{indexes[int(index)]}{bracket}{rest}" if bracket else field

        with renamed(name_of):
            single = self.parallel_tool_calls is False
            return tools_of(given, mode, named, is_single=single)

    def _choice(self) -> tuple[ToolChoice, str | None, frozenset[str] | None]:
        """The mode, the one tool that the answer must call, and the tools that it may call, if
        these are fewer than the request has.
        """
        match self.tool_choice:
            case None:
                return ToolChoice.AUTO, None, None
            case str(mode) if mode in _CHOICES:
                return _CHOICES[mode], None, None
            case {"type": "function", "name": str(name)}:
                return ToolChoice.REQUIRED, name, None
            case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": list(of)}:
                names = (tool.get("name") for tool in of if isinstance(tool, dict))
                allowed = frozenset(name for name in names if isinstance(name, str))
                return _CHOICES[mode], None, allowed
            case _:
                raise InvalidRequest(
                    "tool_choice",
                    "must be none, auto, required, a function with its name, or allowed_tools",
                )


def _function(tool: dict[str, Any], index: int) -> tuple[str, str, str]:
    """Name, description and the schema of the parameters. Raises InvalidRequest."""
    path = f"tools[{index}]"
    name, description = tool.get("name"), tool.get("description") or ""
    parameters = tool.get("parameters") or {}
    if not isinstance(name, str):
        raise InvalidRequest(f"{path}.name", "must be a text")
    if not isinstance(description, str):
        raise InvalidRequest(f"{path}.description", "must be a text")
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"{path}.parameters", "must be an object")
    return name, description, json.dumps(parameters) if parameters else ""
