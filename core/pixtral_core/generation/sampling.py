"""The sampling parameters of a completion."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from pixtral.v1 import chat_pb2
from pixtral_core.errors import InvalidRequest


class Structure(Enum):
    """The constraints of structured output, as pixtral.v1.StructuredOutput names them."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"
    JSON_OBJECT = "json_object"


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """`values` are the texts of a choice. A JSON object has none, and any other structure has one.

    `disable_any_whitespace` keeps the JSON of a schema on one line.
    """

    structure: Structure
    values: tuple[str, ...] = ()
    disable_any_whitespace: bool = False

    @property
    def path(self) -> str:
        """The path of its field in a request."""
        return f"sampling.structured_output.{self.structure.value}"


@dataclass(frozen=True, slots=True)
class Sampling:
    """A field that is None takes the default of the model's generation_config.json, or vLLM's if
    that file has none.

    Names and meanings are vLLM's. If `max_tokens` is None, a completion may fill the context. If
    `logprobs` or `prompt_logprobs` is None, a completion has no such log-probabilities.
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
    include_stop_str_in_output: bool = False


_TUPLES = ("stop", "stop_token_ids", "bad_words", "allowed_token_ids")
_NAMES = tuple(each.name for each in fields(Sampling) if each.name != "structured_output")
_DEFAULTS = Sampling()


def from_proto(sampling: chat_pb2.SamplingParams) -> Sampling:
    """Raises InvalidRequest for a structured output without a constraint."""
    given: dict[str, Any] = {each.name: value for each, value in sampling.ListFields()}
    for name in _TUPLES:
        if name in given:
            given[name] = tuple(given[name])
    if sampling.logit_bias:
        given["logit_bias"] = dict(sampling.logit_bias)
    if sampling.HasField("structured_output"):
        given["structured_output"] = _structured_output(sampling.structured_output)
    return Sampling(**given)


def to_proto(sampling: Sampling) -> chat_pb2.SamplingParams:
    given = {
        name: value
        for name in _NAMES
        if (value := getattr(sampling, name)) != getattr(_DEFAULTS, name)
    }
    made = chat_pb2.SamplingParams(**given)
    wanted = sampling.structured_output
    if wanted is not None:
        target = made.structured_output
        match wanted.structure:
            case Structure.CHOICE:
                target.choice.values.extend(wanted.values)
            case Structure.JSON_OBJECT:
                target.json_object = True
            case _:
                setattr(target, wanted.structure.value, wanted.values[0])
        target.disable_any_whitespace = wanted.disable_any_whitespace
    return made


def _structured_output(wanted: chat_pb2.StructuredOutput) -> StructuredOutput:
    name, path = wanted.WhichOneof("constraint"), "sampling.structured_output"
    match name:
        case None:
            raise InvalidRequest(
                path, "must have one of json_schema, regex, choice, grammar and json_object"
            )
        case "choice":
            values = tuple(wanted.choice.values)
        case "json_object":
            if not wanted.json_object:
                raise InvalidRequest(f"{path}.json_object", "must be true, or left out")
            values = ()
        case _:
            values = (getattr(wanted, name),)
    return StructuredOutput(Structure(name), values, wanted.disable_any_whitespace)
