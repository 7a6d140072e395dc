"""What OpenAI's clients send, checked against its types."""

import logging
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pixtral.v1 import chat_pb2
from serving.errors import InvalidRequest

logger = logging.getLogger(__name__)

UInt32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


def _as_list(value: Any) -> Any:
    match value:
        case None:
            return []
        case str():
            return [value]
        case _:
            return value


def _not_minus_one(value: Any) -> Any:
    # vLLM's other way to say that every token may come.
    return 0 if value == -1 else value


class Message(BaseModel):
    """`content` is read by `gateway.http.messages`, which names the part that is wrong."""

    model_config = ConfigDict(extra="ignore")

    role: str
    content: Any = None
    tool_calls: Any = None
    function_call: Any = None
    prefix: Any = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool | None = None


class _Request(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None

    def check_served(self) -> None:
        """Raises InvalidRequest for a field that asks for what this service cannot do.

        Others that it does not know are passed over, as vLLM does.
        """
        unknown = 0
        for name, value in (self.model_extra or {}).items():
            if name in _NOTHING:
                if not _asks_for_nothing(name, value):
                    raise InvalidRequest(name, "is not supported", "UNSUPPORTED_PARAMETER")
            elif name not in _HARMLESS:
                unknown += 1
        if unknown:
            # Not their names: those are the client's own words.
            logger.debug("fields that are not known, and passed over: %d", unknown)


class ChatRequest(_Request):
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: UInt32 | None = None
    max_completion_tokens: UInt32 | None = None
    min_tokens: UInt32 | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[UInt32 | None, BeforeValidator(_not_minus_one)] = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Int64 | None = None
    # Mistral's name for it.
    random_seed: Int64 | None = None
    stop: Annotated[list[str], BeforeValidator(_as_list)] = Field(default_factory=list)
    stop_token_ids: Annotated[list[UInt32], BeforeValidator(_as_list)] = Field(default_factory=list)
    ignore_eos: bool | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self) -> chat_pb2.SamplingParams:
        """What is absent or null takes the model's own default."""
        values = {name: getattr(self, name) for name in _SAMPLING}
        if self.max_completion_tokens is not None:
            values["max_tokens"] = self.max_completion_tokens
        if self.seed is None:
            values["seed"] = self.random_seed
        return chat_pb2.SamplingParams(
            **{name: value for name, value in values.items() if value is not None}
        )


class TokenizeRequest(_Request):
    """A text or a conversation. `add_special_tokens` is the text's alone."""

    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None


_SAMPLING = tuple(field.name for field in chat_pb2.SamplingParams.DESCRIPTOR.fields)

# What cannot be done yet, and the values beside null with which it is not asked for.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "cache_salt": ("",),
    "chat_template": ("",),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guardrails": ([],),
    "guided_choice": ([],),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "logit_bias": ({},),
    "logits_processors": ([],),
    "logprobs": (False,),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "priority": (0,),
    "prompt_logprobs": (False,),
    "prompt_mode": (),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "return_token_strs": (False,),
    "safe_prompt": (False,),
    "skip_special_tokens": (True,),
    "structured_outputs": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "top_prompt_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}

# What changes nothing of an answer here.
_HARMLESS = frozenset(
    {
        "include_reasoning",
        "length_penalty",
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "request_id",
        "safety_identifier",
        "service_tier",
        "spaces_between_special_tokens",
        "store",
        "user",
        "verbosity",
    }
)


def _asks_for_nothing(name: str, value: Any) -> bool:
    if name == "response_format" and isinstance(value, dict):
        value = {key: given for key, given in value.items() if given is not None}
    return value is None or value in _NOTHING[name]
