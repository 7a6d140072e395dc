"""The bodies of Anthropic's requests, checked against their types."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from pixtral_core import limits
from pixtral_core.errors import InvalidRequest
from pixtral_core.generation.sampling import Sampling, Structure, StructuredOutput
from pixtral_gateway.api.anthropic.response_schema import SentContent, SentText
from pixtral_gateway.api.anthropic.thinking import Effort, SentThinking
from pixtral_gateway.api.openai.request_schema import RequestBody, StopString, UInt32
from pixtral_gateway.api.openai.schema_limits import Bounded
from pixtral_gateway.checks.conversation import ToolChoice, Tools
from pixtral_gateway.checks.tools import NAME, tools_of

_CHOICES = {
    "auto": ToolChoice.AUTO,
    "none": ToolChoice.NONE,
    "any": ToolChoice.REQUIRED,
    "tool": ToolChoice.REQUIRED,
}


def _as_it_is(value: Any) -> Any:
    # The code that reads the field checks it, and names the wrong part. The type is for
    # /openapi.json only.
    return value


class SentMessage(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: Literal["user", "assistant", "system"]
    content: Annotated[Any, BeforeValidator(_as_it_is, json_schema_input_type=SentContent)]


class SentTool(BaseModel):
    """A tool of the client's own. `strict` changes nothing: a forced tool call always fits
    its schema.
    """

    model_config = ConfigDict(extra="ignore")

    type: Annotated[str | None, WithJsonSchema({"enum": [None, "custom"]})] = None
    name: Annotated[str, Bounded(limits.TOOL_NAME, f"^{NAME.pattern}$")]
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class SentToolChoice(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class SentFormat(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    type: Literal["json_schema"]
    # The name is not `schema`, because pydantic has a method of that name.
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(BaseModel):
    model_config = ConfigDict(extra="ignore")

    format: SentFormat | None = None
    effort: Effort | None = None


class CountTokensRequest(RequestBody):
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"container": (), "mcp_servers": ([],)}

    messages: list[SentMessage]
    system: Annotated[
        Any, BeforeValidator(_as_it_is, json_schema_input_type=str | list[SentText] | None)
    ] = None
    tools: Annotated[list[SentTool] | None, Bounded(limits.TOOLS)] = None
    tool_choice: SentToolChoice | None = None
    thinking: SentThinking | None = None
    output_config: OutputConfig | None = None

    @property
    def effort(self) -> Effort | None:
        return self.output_config.effort if self.output_config is not None else None

    def called_tools(self) -> Tools:
        """The tools that are in effect. Raises InvalidRequest."""
        given = []
        for i, tool in enumerate(self.tools or ()):
            if tool.type not in (None, "custom"):
                raise InvalidRequest(
                    f"tools[{i}].type",
                    "must be custom: this gateway has no tools of its own",
                    "UNSUPPORTED_PARAMETER",
                )
            schema = json.dumps(tool.input_schema) if tool.input_schema else ""
            given.append((tool.name, tool.description or "", schema))
        choice = self.tool_choice
        if choice is None:
            return tools_of(given, ToolChoice.AUTO)
        named = choice.name if choice.type == "tool" else None
        if choice.type == "tool" and named is None:
            raise InvalidRequest("tool_choice.name", "is needed")
        is_single = bool(choice.disable_parallel_tool_use)
        return tools_of(given, _CHOICES[choice.type], named, is_single=is_single)

    def name_of(self, field: str) -> str:
        """Anthropic's name for a field of the gateway."""
        if field.startswith("tools["):
            return field.replace("].parameters", "].input_schema")
        if field.startswith("sampling.stop"):
            return field.replace("sampling.stop", "stop_sequences", 1)
        if field.startswith("sampling.structured_output"):
            return "output_config.format"
        return field


class MessagesRequest(CountTokensRequest):
    max_tokens: Annotated[UInt32 | None, Bounded(limits.MAX_TOKENS)] = None
    stop_sequences: Annotated[list[StopString] | None, Bounded(limits.STOP)] = None
    stream: bool | None = None
    temperature: Annotated[float | None, Bounded(limits.TEMPERATURE)] = None
    top_p: Annotated[float | None, Bounded(limits.TOP_P)] = None
    top_k: Annotated[UInt32 | None, Bounded(limits.TOP_K)] = None

    def sampling(self, *, disable_any_whitespace: bool = True) -> Sampling:
        """A parameter that is absent or null takes the model's own default.

        `disable_any_whitespace` puts the JSON of a format on one line.
        """
        wanted = self.output_config.format if self.output_config is not None else None
        structured = None
        if wanted is not None:
            structured = StructuredOutput(
                Structure.JSON_SCHEMA, (json.dumps(wanted.schema_),), disable_any_whitespace
            )
        return Sampling(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=tuple(self.stop_sequences or ()),
            structured_output=structured,
        )
