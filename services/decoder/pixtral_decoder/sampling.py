"""How to pick the next token."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Structure(Enum):
    """What an answer can be held to, as pixtral.v1.StructuredOutput names it."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"
    JSON_OBJECT = "json_object"


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """`values` are the strings to choose from, or the one text of any other structure.

    `disable_any_whitespace` has JSON of a schema come on one line.
    """

    structure: Structure
    values: tuple[str, ...] = ()
    disable_any_whitespace: bool = False

    @property
    def path(self) -> str:
        """Its field in GenerateRequest."""
        return f"sampling.structured_output.{self.structure.value}"


@dataclass(frozen=True, slots=True)
class Sampling:
    """What is None takes the model's own default, from its generation_config.json, or vLLM's.

    The names and meanings are vLLM's. `max_tokens` None is as many as the context still holds,
    `logprobs` and `prompt_logprobs` None tell none.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    structured_output: StructuredOutput | None = None
    n: int = 1
