"""Checks of a request before any work is done for it, each naming the field that fails."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pixtral_core.errors import InvalidRequest, NotFound
from pixtral_core.generation.sampling import Sampling
from pixtral_gateway.checks.conversation import (
    NO_TOOLS,
    Conversation,
    Role,
    Tools,
    Turn,
)
from pixtral_gateway.checks.structured_output import check_structured_output
from pixtral_gateway.checks.tools import check_exchanges

# Each is searched for after every token.
MAX_STOP_STRINGS = 64
MAX_STOP_LENGTH = 1024
MAX_LOGPROBS = 20  # as many as vLLM tells
# Of all tokens of a prompt together, as the decoder has it.
MAX_PROMPT_LOGPROBS = 1 << 17
MAX_BAD_WORDS = 64  # each becomes up to two of vLLM's 128 sequences of tokens
MAX_BAD_WORD_LENGTH = 128
MAX_TOKEN_IDS = 1024
MAX_CHOICES = 64


@dataclass(frozen=True, slots=True)
class Range:
    """Of a number; a NaN is in none."""

    description: str
    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    def holds(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def schema(self) -> dict[str, float]:
        """In JSON Schema's words."""
        bounds = {
            "minimum": self.least,
            "exclusiveMinimum": self.above,
            "maximum": self.most,
            "exclusiveMaximum": self.below,
        }
        return {name: bound for name, bound in bounds.items() if math.isfinite(bound)}


# Those of vLLM's SamplingParams.
RANGES = {
    "max_tokens": Range("must be at least 1", least=1),
    "temperature": Range("must be from 0 to 2", least=0, most=2),
    "top_p": Range("must be above 0 and at most 1", above=0, most=1),
    "min_p": Range("must be from 0 to 1", least=0, most=1),
    "repetition_penalty": Range("must be above 0", above=0),
    "presence_penalty": Range("must be from -2 to 2", least=-2, most=2),
    "frequency_penalty": Range("must be from -2 to 2", least=-2, most=2),
    "n": Range(f"must be from 1 to {MAX_CHOICES}", least=1, most=MAX_CHOICES),
    "logprobs": Range(f"must be at most {MAX_LOGPROBS}", least=0, most=MAX_LOGPROBS),
    "prompt_logprobs": Range(f"must be at most {MAX_LOGPROBS}", least=0, most=MAX_LOGPROBS),
}


def adapter_of(asked: str, served: str, adapters: Collection[str]) -> str:
    """The adapter that a request asks for; empty for the model itself, as is asking for none.

    Raises NotFound for any other name.
    """
    if asked in ("", served):
        return ""
    if asked not in adapters:
        raise NotFound("this gateway does not serve that model", "MODEL_NOT_FOUND")
    return asked


def check_parts(parts: Sequence[int], context_length: int) -> None:
    """Raises InvalidRequest for more parts than the context has tokens: each takes one or more.

    `parts` has each message's. Before the messages are read, which goes through all of them while
    nothing else is served.
    """
    if len(parts) > context_length or sum(parts) > context_length:
        raise InvalidRequest(
            "messages",
            f"there are more parts than the context of {context_length} tokens holds",
            "PROMPT_TOO_LONG",
        )


def conversation_of(
    turns: tuple[Turn, ...], *, max_images: int, tools: Tools = NO_TOOLS
) -> Conversation:
    """At first a system message or none, then user and assistant by turns, the user last.

    Where an assistant calls tools, their results come next, and then either of the two; they may
    be last. Raises InvalidRequest for any other order, and for more than `max_images` images.
    """
    if not turns:
        raise InvalidRequest("messages", "at least one message is needed")
    check_exchanges(turns)
    _check_order(turns)
    conversation = Conversation(turns, tools)
    if len(conversation.images) > max_images:
        raise InvalidRequest(
            "messages", f"more than {max_images} images in a request", "TOO_MANY_IMAGES"
        )
    return conversation


def check_sampling(sampling: Sampling, *, vocabulary_size: int) -> None:
    """Raises InvalidRequest for a value that the engine would refuse, or could not bear."""
    for field, allowed in RANGES.items():
        value = getattr(sampling, field)
        if value is not None and not allowed.holds(value):
            raise InvalidRequest(f"sampling.{field}", allowed.description)
    if sampling.max_tokens is not None and (sampling.min_tokens or 0) > sampling.max_tokens:
        raise InvalidRequest("sampling.min_tokens", "must not be above max_tokens")
    _check_strings("sampling.stop", sampling.stop, MAX_STOP_STRINGS, MAX_STOP_LENGTH)
    _check_strings("sampling.bad_words", sampling.bad_words, MAX_BAD_WORDS, MAX_BAD_WORD_LENGTH)
    for i, word in enumerate(sampling.bad_words):
        if word.isspace():
            raise InvalidRequest(f"sampling.bad_words[{i}]", "must have more than white space")
    for field, most in (("stop_token_ids", MAX_STOP_STRINGS), ("allowed_token_ids", MAX_TOKEN_IDS)):
        _check_count(f"sampling.{field}", len(getattr(sampling, field)), most)
        for i, token_id in enumerate(getattr(sampling, field)):
            if token_id >= vocabulary_size:
                raise InvalidRequest(f"sampling.{field}[{i}]", "not in the vocabulary")
    _check_logit_bias(sampling.logit_bias, vocabulary_size)
    if sampling.structured_output is not None:
        check_structured_output(sampling, sampling.structured_output)


def _check_logit_bias(logit_bias: Mapping[int, float], vocabulary_size: int) -> None:
    _check_count("sampling.logit_bias", len(logit_bias), MAX_TOKEN_IDS)
    for token_id, bias in logit_bias.items():
        path = f"sampling.logit_bias[{token_id}]"
        if token_id >= vocabulary_size:
            raise InvalidRequest(path, "not in the vocabulary")
        if not -100 <= bias <= 100:
            raise InvalidRequest(path, "must be from -100 to 100")


def _check_strings(path: str, strings: Sequence[str], most: int, longest: int) -> None:
    _check_count(path, len(strings), most)
    for i, string in enumerate(strings):
        if not 0 < len(string) <= longest:
            raise InvalidRequest(f"{path}[{i}]", f"must have 1 to {longest} characters")


def _check_count(path: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidRequest(path, f"must hold at most {most}")


def check_characters(characters: int, field: str, longest_token: int, context_length: int) -> None:
    """Raises InvalidRequest for text too long for the context, however it would be tokenized."""
    if characters > longest_token * context_length:
        raise InvalidRequest(
            field,
            f"the text is longer than the context of {context_length} tokens",
            "PROMPT_TOO_LONG",
        )


def check_length(prompt_tokens: int, sampling: Sampling, context_length: int) -> None:
    """Raises InvalidRequest where prompt and answer do not fit in `context_length` tokens."""
    if prompt_tokens >= context_length:
        raise InvalidRequest(
            "messages",
            f"the prompt has {prompt_tokens} tokens and the context holds {context_length}, "
            "the answer among them",
            "PROMPT_TOO_LONG",
        )
    room = context_length - prompt_tokens
    if sampling.max_tokens is not None and sampling.max_tokens > room:
        raise InvalidRequest(
            "sampling.max_tokens", f"beside the prompt the context holds {room} tokens"
        )
    if (sampling.min_tokens or 0) > room:
        raise InvalidRequest(
            "sampling.min_tokens", f"beside the prompt the context holds {room} tokens"
        )
    if sampling.prompt_logprobs is not None:
        told = prompt_tokens * (1 + sampling.prompt_logprobs)
        if told > MAX_PROMPT_LOGPROBS:
            raise InvalidRequest(
                "sampling.prompt_logprobs",
                f"the prompt's {prompt_tokens} tokens have {told}, and at most "
                f"{MAX_PROMPT_LOGPROBS} are told",
            )


def _check_order(turns: Sequence[Turn]) -> None:
    first = 1 if turns[0].role is Role.SYSTEM else 0
    expected: tuple[Role, ...] = (Role.USER,)
    for i, turn in enumerate(turns[first:], start=first):
        # `check_exchanges` has seen to it that tools speak when they are asked, and only then.
        if turn.role is not Role.TOOL and turn.role not in expected:
            raise InvalidRequest(f"messages[{i}].role", f"must be {' or '.join(expected)} here")
        match turn.role:
            case Role.TOOL:
                expected = (Role.USER, Role.ASSISTANT)
            case Role.USER:
                expected = (Role.ASSISTANT,)
            case _:
                expected = (Role.USER,)
    if turns[-1].role not in (Role.USER, Role.TOOL):
        raise InvalidRequest(f"messages[{len(turns) - 1}].role", "the last must be user or tool")
