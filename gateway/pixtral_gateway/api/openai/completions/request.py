"""The body of POST /v1/completions."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import WithJsonSchema

from pixtral_core import limits
from pixtral_core.errors import InvalidRequest
from pixtral_gateway.api.openai.request_schema import CompletionBody, UInt32
from pixtral_gateway.api.openai.schema_limits import Bounded, keywords
from pixtral_gateway.request import RawPrompt

# OpenAI and vLLM have the same default.
MAX_TOKENS = 16

_IDS = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": limits.UINT32_MAX},
    "minItems": 1,
}
_TEXT = {"type": "string", "minLength": 1}
_PROMPT = {
    "anyOf": [
        _TEXT,
        _IDS,
        {"type": "array", "items": _TEXT, **keywords(limits.PROMPTS)},
        {"type": "array", "items": _IDS, **keywords(limits.PROMPTS)},
    ]
}


class CompletionRequest(CompletionBody):
    """`echo` puts the prompt before the text. With `max_tokens` 0, the answer is the prompt
    alone."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"prompt_embeds": ([],), "suffix": ("",)}

    prompt: Annotated[str | list[UInt32] | list[str] | list[list[UInt32]], WithJsonSchema(_PROMPT)]
    max_tokens: Annotated[
        UInt32 | None,
        WithJsonSchema(
            {"type": ["integer", "null"], "minimum": 0, "maximum": limits.MAX_TOKENS.high}
        ),
    ] = None
    logprobs: Annotated[UInt32 | None, Bounded(limits.LOGPROBS)] = None
    echo: bool | None = None
    add_special_tokens: bool | None = None

    @property
    def is_echo_alone(self) -> bool:
        return bool(self.echo) and self.max_tokens == 0

    def prompts(self, vocabulary_size: int) -> list[RawPrompt]:
        """The prompts of the request. Raises InvalidRequest."""
        given = self.prompt
        if isinstance(given, str):
            return [self._raw(given, "prompt", vocabulary_size)]
        if not given or isinstance(given[0], int):
            return [self._raw(given, "prompt", vocabulary_size)]
        limits.PROMPTS.check(len(given), "prompt")
        return [self._raw(each, f"prompt[{i}]", vocabulary_size) for i, each in enumerate(given)]

    def own_values(self) -> dict[str, Any]:
        values = super().own_values()
        values["logprobs"] = self.logprobs
        values["max_tokens"] = MAX_TOKENS if self.max_tokens is None else self.max_tokens
        if self.is_echo_alone:
            # The engine generates at least one token, and the answer leaves it out.
            values["max_tokens"] = 1
        if self.echo and self.logprobs is not None and self.prompt_logprobs is None:
            if self.stream:
                raise InvalidRequest(
                    "echo",
                    "cannot be combined with logprobs in a stream: leave stream out",
                    "UNSUPPORTED_PARAMETER",
                )
            values["prompt_logprobs"] = self.logprobs
        return values

    def name_of(self, field: str) -> str:
        # The pipeline uses the name `messages` for every prompt.
        if field == "messages":
            return "prompt"
        if field == "sampling.prompt_logprobs" and self.prompt_logprobs is None:
            return "logprobs"
        return super().name_of(field)

    def _raw(self, given: Any, path: str, vocabulary_size: int) -> RawPrompt:
        """The prompt of a text or of a list of token ids."""
        if not given:
            raise InvalidRequest(path, "must not be empty")
        if isinstance(given, str):
            return RawPrompt(text=given, bos=self.add_special_tokens is not False)
        if max(given) >= vocabulary_size:
            raise InvalidRequest(path, f"a token id must be below {vocabulary_size}")
        return RawPrompt(token_ids=tuple(given))
