"""The bodies of OpenAI's requests, checked against their types."""

import json
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from pixtral_core import limits
from pixtral_core.errors import InvalidRequest
from pixtral_core.generation.sampling import Sampling, Structure, StructuredOutput
from pixtral_gateway.api.field_names import renamed
from pixtral_gateway.api.openai.response_schema import Content, ToolCall
from pixtral_gateway.api.openai.schema_limits import Bounded, keywords
from pixtral_gateway.api.openai.tools import CHOICE, ToolDefinition, to_tools
from pixtral_gateway.checks.conversation import Role, Tools

logger = logging.getLogger(__name__)

_LOGIT_BIAS = {
    "anyOf": [
        {
            "type": "object",
            "maxProperties": limits.LOGIT_BIAS.most,
            "propertyNames": {"pattern": f"^[0-9]{{1,{len(str(limits.UINT32_MAX))}}}$"},
            "additionalProperties": {"type": "number", **keywords(limits.LOGIT_BIAS_VALUE)},
        },
        {"type": "null"},
    ]
}

# The ranges of the protos' integers.
UInt32 = Annotated[int, Field(ge=0, le=limits.UINT32_MAX)]
Int64 = Annotated[int, Field(ge=limits.INT64_MIN, le=limits.INT64_MAX)]

TopK = Annotated[UInt32, Bounded(limits.TOP_K)]
StopString = Annotated[str, Bounded(limits.STOP_LENGTH)]
BadWord = Annotated[str, Bounded(limits.BAD_WORD_LENGTH)]
ChoiceText = Annotated[str, Bounded(limits.CHOICE_LENGTH)]
ToolList = Annotated[list[ToolDefinition] | None, Bounded(limits.TOOLS)]

ROLES = {
    "system": Role.SYSTEM,
    # OpenAI's newer name for `system`.
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
}


def _as_it_is(value: Any) -> Any:
    # The code that reads the field checks it, and names the wrong part. The type is for
    # /openapi.json only.
    return value


def _as_list(value: Any) -> Any:
    match value:
        case None:
            return []
        case str():
            return [value]
        case _:
            return value


def _none_if_false(value: Any) -> Any:
    return None if value is False else value


def _not_minus_one(value: Any) -> Any:
    # vLLM's other way to allow every token.
    return 0 if value == -1 else value


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: Annotated[str, WithJsonSchema({"type": "string", "enum": list(ROLES)})]
    content: Annotated[Any, BeforeValidator(_as_it_is, json_schema_input_type=Content)] = None
    tool_calls: Annotated[
        list[Annotated[Any, BeforeValidator(_as_it_is, json_schema_input_type=ToolCall)]] | None,
        Bounded(limits.TOOL_CALLS),
    ] = None
    tool_call_id: str | None = None
    function_call: Annotated[Any, WithJsonSchema({"type": "null"})] = None
    # Mistral's field. If true, the answer continues this message, and begins with its text.
    prefix: bool | None = None
    # The assistant's thought before its answer: vLLM's name of the field, and an older name.
    reasoning: str | None = None
    reasoning_content: str | None = None

    @property
    def has_reasoning(self) -> bool:
        return bool(self.reasoning or self.reasoning_content)


# The schema that `json_object` means.
ANY_OBJECT = '{"type": "object"}'


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    # The name is not `schema`, because pydantic has a method of that name.
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(BaseModel):
    """vLLM's own field. `unsupported` lists parts of it that vLLM has and this service has not."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    unsupported: ClassVar[tuple[str, ...]] = (
        "disable_additional_properties",
        "structural_tag",
        "whitespace_pattern",
    )

    json_: Annotated[str | dict[str, Any] | None, Bounded(limits.SCHEMA_CHARACTERS)] = Field(
        None, alias="json"
    )
    regex: Annotated[str | None, Bounded(limits.REGEX_CHARACTERS)] = None
    choice: Annotated[list[ChoiceText] | None, Bounded(limits.CHOICES)] = None
    grammar: Annotated[str | None, Bounded(limits.GRAMMAR_CHARACTERS)] = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool | None = None
    # vLLM's own fields, which have an effect only together, as in vLLM.
    continuous_usage_stats: bool | None = None


class RequestBody(BaseModel):
    """`refused` has fields that only this route cannot serve, each with the values that ask for
    nothing. `reasons` has the message for such a field: why it is refused, and what to do instead.
    """

    model_config = ConfigDict(extra="allow")

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    reasons: ClassVar[Mapping[str, str]] = {}

    model: str | None = None

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        # A request may have these fields only with a value that asks for nothing.
        schema["properties"].update(
            (name, {"enum": [None, *nothing], "description": "Not supported."})
            for name, nothing in cls.all_refused().items()
            if name not in schema["properties"]
        )
        return schema

    @classmethod
    def all_refused(cls) -> Mapping[str, tuple[Any, ...]]:
        """Fields that this route cannot serve, and values other than null that ask for nothing."""
        return {**NOTHING, **cls.refused}

    def check_served(self) -> None:
        """Raises InvalidRequest for a field that asks for something that this service cannot do.

        Unknown fields are ignored, as in vLLM.
        """
        unknown = 0
        refused = self.all_refused()
        for name, value in (self.model_extra or {}).items():
            if name in refused:
                if value is not None and value not in refused[name]:
                    instead = INSTEAD.get(name, "leave it out")
                    reason = self.reasons.get(name, f"is not supported: {instead}")
                    raise InvalidRequest(name, reason, "UNSUPPORTED_PARAMETER")
            elif name not in HARMLESS:
                unknown += 1
        if unknown:
            # The log line leaves out their names, which are the client's words.
            logger.debug("unknown fields are ignored: %d", unknown)


class SamplingBody(RequestBody):
    """The fields of every route for completions, under vLLM's names."""

    stream: bool | None = None
    min_tokens: Annotated[UInt32 | None, Bounded(limits.MIN_TOKENS)] = None
    temperature: Annotated[float | None, Bounded(limits.TEMPERATURE)] = None
    top_p: Annotated[float | None, Bounded(limits.TOP_P)] = None
    top_k: Annotated[
        TopK | None,
        BeforeValidator(_not_minus_one, json_schema_input_type=TopK | Literal[-1] | None),
    ] = None
    min_p: Annotated[float | None, Bounded(limits.MIN_P)] = None
    repetition_penalty: Annotated[float | None, Bounded(limits.REPETITION_PENALTY)] = None
    presence_penalty: Annotated[float | None, Bounded(limits.PRESENCE_PENALTY)] = None
    frequency_penalty: Annotated[float | None, Bounded(limits.FREQUENCY_PENALTY)] = None
    seed: Int64 | None = None
    stop: Annotated[
        list[StopString],
        BeforeValidator(_as_list, json_schema_input_type=list[StopString] | StopString | None),
        Bounded(limits.STOP),
    ] = Field(default_factory=list)
    stop_token_ids: Annotated[
        list[UInt32],
        BeforeValidator(_as_list, json_schema_input_type=list[UInt32] | None),
        Bounded(limits.STOP_TOKEN_IDS),
    ] = Field(default_factory=list)
    ignore_eos: bool | None = None
    logit_bias: Annotated[dict[UInt32, float] | None, WithJsonSchema(_LOGIT_BIAS)] = None
    bad_words: Annotated[list[BadWord] | None, Bounded(limits.BAD_WORDS)] = None
    allowed_token_ids: Annotated[list[UInt32] | None, Bounded(limits.ALLOWED_TOKEN_IDS)] = None
    structured_outputs: StructuredOutputs | None = None
    include_stop_str_in_output: bool | None = None
    priority: Int64 | None = None

    def sampling(self, *, disable_any_whitespace: bool = True) -> Sampling:
        """A parameter that is absent or null takes the model's own default.

        `disable_any_whitespace` puts the JSON of a format on one line.
        """
        values = {name: getattr(self, name, None) for name in _SAME} | self.own_values()
        values["structured_output"] = self._structured_output(disable_any_whitespace)
        given = {name: value for name, value in values.items() if value is not None}
        for name, value in given.items():
            if isinstance(value, list):
                given[name] = tuple(value)
        return Sampling(**given)

    def own_values(self) -> dict[str, Any]:
        """Parameters that have another name or form on this route. Raises InvalidRequest."""
        return {}

    def own_names(self) -> AbstractContextManager[None]:
        """Errors of the block use the client's name of a field, if a field has several names."""
        return renamed(self.name_of)

    def name_of(self, field: str) -> str:
        """The client's name for a field of the sampling parameters."""
        if field.startswith(_STRUCTURED):
            if self.structured_outputs is None:
                return self.format_field()
            return field.replace(_STRUCTURED, "structured_outputs", 1)
        return field

    def format_field(self) -> str:
        """The field beside `structured_outputs` that defines a structure."""
        return "response_format"

    def of_format(self) -> StructuredOutput | None:
        """The structure that `format_field` defines. Raises InvalidRequest."""
        return None

    def _structured_output(self, is_on_one_line: bool) -> StructuredOutput | None:
        wanted = self.of_format()
        if wanted is not None and is_on_one_line:
            values = wanted.values or (ANY_OBJECT,)
            wanted = StructuredOutput(Structure.JSON_SCHEMA, values, disable_any_whitespace=True)
        found = [each for each in (wanted, self._of_vllm()) if each is not None]
        if len(found) > 1:
            raise InvalidRequest(
                "structured_outputs", f"cannot be combined with {self.format_field()}"
            )
        return found[0] if found else None

    def _of_vllm(self) -> StructuredOutput | None:
        wanted = self.structured_outputs
        if wanted is None:
            return None
        for name in wanted.unsupported:
            if (wanted.model_extra or {}).get(name):
                raise InvalidRequest(
                    f"structured_outputs.{name}",
                    "is not supported: leave it out",
                    "UNSUPPORTED_PARAMETER",
                )
        schema = wanted.json_
        given: dict[Structure, tuple[str, ...]] = {}
        if schema is not None:
            text = json.dumps(schema) if isinstance(schema, dict) else schema
            given[Structure.JSON_SCHEMA] = (text,)
        if wanted.regex is not None:
            given[Structure.REGEX] = (wanted.regex,)
        if wanted.choice is not None:
            given[Structure.CHOICE] = tuple(wanted.choice)
        if wanted.grammar is not None:
            given[Structure.GRAMMAR] = (wanted.grammar,)
        if wanted.json_object:
            given[Structure.JSON_OBJECT] = ()
        if len(given) != 1:
            raise InvalidRequest(
                "structured_outputs",
                "must have one of json, regex, choice, grammar and json_object, and no more",
            )
        ((structure, texts),) = given.items()
        return StructuredOutput(structure, texts, bool(wanted.disable_any_whitespace))


class CompletionBody(SamplingBody):
    """The common fields of chat completions and completions of a prompt."""

    stream_options: StreamOptions | None = None
    max_tokens: Annotated[UInt32 | None, Bounded(limits.MAX_TOKENS)] = None
    # Mistral's name for `seed`.
    random_seed: Int64 | None = None
    n: Annotated[UInt32 | None, Bounded(limits.N)] = None
    prompt_logprobs: Annotated[
        UInt32 | None,
        BeforeValidator(_none_if_false, json_schema_input_type=UInt32 | Literal[False] | None),
        Bounded(limits.PROMPT_LOGPROBS),
    ] = None
    response_format: ResponseFormat | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    # vLLM's field, which becomes a part of the answer's id.
    request_id: Annotated[str | None, Bounded(limits.REQUEST_ID)] = None

    def answer_id(self, own: str) -> str:
        """The id of the answer. Raises InvalidRequest."""
        if not self.request_id:
            return own
        limits.REQUEST_ID.check(len(self.request_id), "request_id")
        return f"{own.partition('-')[0]}-{self.request_id}"

    def always_include_usage(self) -> None:
        """Sets `include_usage` as if the client had."""
        options = self.stream_options or StreamOptions()
        self.stream_options = options.model_copy(update={"include_usage": True})

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and bool(
            self.stream_options and self.stream_options.continuous_usage_stats
        )

    def own_values(self) -> dict[str, Any]:
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidRequest(
                "prompt_logprobs", "is not supported in a stream", "UNSUPPORTED_PARAMETER"
            )
        return {"seed": self.random_seed} if self.seed is None else {}

    def of_format(self) -> StructuredOutput | None:
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return StructuredOutput(Structure.JSON_OBJECT)
        if wanted.json_schema is None:
            raise InvalidRequest("response_format.json_schema", "is needed")
        schema = json.dumps(wanted.json_schema.schema_)
        return StructuredOutput(Structure.JSON_SCHEMA, (schema,))


class ConversationBody(RequestBody):
    """The fields that say where a prompt of messages ends."""

    # This field has no effect with Mistral's templates. A value that contradicts another field is
    # refused.
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def goes_on(self) -> bool:
        """Whether the answer continues the last message. Raises InvalidRequest."""
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message",
                "cannot be combined with add_generation_prompt: leave that out, or set it to false",
            )
        return bool(self.continue_final_message)


class ChatRequest(CompletionBody, ConversationBody):
    messages: list[Message]
    max_completion_tokens: Annotated[UInt32 | None, Bounded(limits.MAX_TOKENS)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[UInt32 | None, Bounded(limits.LOGPROBS)] = None
    tools: ToolList = None
    # `pixtral_gateway.api.openai.tools` reads this field.
    tool_choice: Annotated[Any, WithJsonSchema(CHOICE)] = None
    parallel_tool_calls: bool | None = None
    # vLLM's field. If true, an answer that continues a message begins with that message's text.
    echo: bool | None = None
    # Templates that know efforts use this field, and other templates ignore it.
    reasoning_effort: str | None = None
    # vLLM's field. If false, the answer leaves out the thought.
    include_reasoning: bool | None = None
    _beginning: str | None = PrivateAttr(None)

    def forget(self) -> None:
        """Frees the fields that have been converted, and those that are ignored, because an answer
        may take minutes."""
        self._beginning = self.beginning()
        self.messages = []
        self.tools = self.tool_choice = self.response_format = None
        (self.model_extra or {}).clear()

    def beginning(self) -> str:
        """The text with which the answer begins. The model does not generate this text."""
        if self._beginning is not None:
            return self._beginning
        last = self.messages[-1] if self.messages else None
        if last is None or not (last.prefix or (self.echo and self.goes_on())):
            return ""
        if isinstance(last.content, str):
            return last.content
        parts = last.content if isinstance(last.content, list) else ()
        texts = (part.get("text") for part in parts if isinstance(part, dict))
        return "\n\n".join(text for text in texts if text and isinstance(text, str))

    def called_tools(self) -> Tools:
        return to_tools(self.tools, self.tool_choice, is_parallel=self.parallel_tool_calls)

    def own_values(self) -> dict[str, Any]:
        values = super().own_values()
        if self.max_completion_tokens is not None:
            values["max_tokens"] = self.max_completion_tokens
        if self.logprobs:
            values["logprobs"] = self.top_logprobs or 0
        elif self.top_logprobs:
            raise InvalidRequest("top_logprobs", "needs logprobs to be true")
        return values

    def name_of(self, field: str) -> str:
        if field == "sampling.max_tokens" and self.max_completion_tokens is not None:
            return "max_completion_tokens"
        if field == "sampling.logprobs":
            return "top_logprobs"
        return super().name_of(field)


class TokenizeRequest(ConversationBody):
    """A text or a conversation. Only a text has `add_special_tokens`."""

    prompt: str | None = None
    messages: list[Message] | None = None
    tools: ToolList = None
    add_special_tokens: bool | None = None

    def called_tools(self) -> Tools:
        return to_tools(self.tools, None, is_parallel=None)


class DetokenizeRequest(RequestBody):
    tokens: list[UInt32]


_STRUCTURED = "sampling.structured_output"
# Fields with the same name and meaning here and in Sampling.
_SAME = tuple(
    each.name for each in fields(Sampling) if each.name not in ("logprobs", "structured_output")
)

# Fields that are not supported, each with the values other than null that ask for nothing.
NOTHING: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (False,),
    "audio": (),
    "best_of": (1,),
    "cache_salt": ("",),
    "chat_template": ("",),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "ec_transfer_params": ({},),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guardrails": ([],),
    "guided_choice": ([],),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "kv_transfer_params": ({},),
    "logprob_token_ids": ([],),
    "logits_processors": ([],),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_mode": (),
    "repetition_detection": (),
    "return_prompt_text": (False,),
    "return_token_strs": (False,),
    "routed_experts_prompt_start": (0,),
    "safe_prompt": (False,),
    "thinking_token_budget": (),
    "top_prompt_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    "watermarking": (False,),
    "web_search_options": (),
}

# For each such field, why it cannot be served, or what to do instead.
INSTEAD = {
    "add_special_tokens": "the template adds all special tokens",
    "best_of": "set n, and choose among the choices",
    "cache_salt": "each tenant has a prefix cache of its own",
    "chat_template": "the template is the tokenizer's own",
    "chat_template_kwargs": "the template is the tokenizer's own",
    "documents": "put the texts into a message",
    "ec_transfer_params": "the service itself hands embeddings from tier to tier",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "guided_choice": "use structured_outputs.choice",
    "guided_grammar": "use structured_outputs.grammar",
    "guided_json": "use structured_outputs.json or response_format",
    "guided_regex": "use structured_outputs.regex",
    "kv_transfer_params": "the service itself chooses where a request is computed",
    "logprob_token_ids": "set top_logprobs",
    "media_io_kwargs": "an image is read as the checkpoint says",
    "mm_processor_kwargs": "an image is read as the checkpoint says",
    "return_prompt_text": "set return_token_ids",
    "routed_experts_prompt_start": "these models have no experts to route to",
    "safe_prompt": "put the rules into a system message",
    "truncate_prompt_tokens": "leave out messages; POST /tokenize counts the tokens",
    "use_beam_search": "set n and a temperature",
    "vllm_xargs": "the engine has no extension that reads them",
}

# Fields that do not change an answer of this service.
HARMLESS = frozenset(
    {
        # Only responses ignore this field: they have the thought as a separate item.
        "include_reasoning",
        # Only beam search uses this field.
        "length_penalty",
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        # vLLM always writes the control tokens of tool calls and thoughts, and never Mistral's
        # other control tokens.
        "skip_special_tokens",
        # Only vLLM's render routes use these fields.
        "mm_payload",
        "return_mm_kwargs",
        "return_token_offsets",
        "safety_identifier",
        "service_tier",
        "session_id",
        "spaces_between_special_tokens",
        "store",
        # This field sets how many tokens come in one chunk.
        "stream_interval",
        # This field sets which end of a prompt is cut off, but this service cuts no prompt.
        "truncation_side",
        "user",
        "verbosity",
    }
)
