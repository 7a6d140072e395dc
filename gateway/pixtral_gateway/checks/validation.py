"""Checks of messages and sampling parameters; each error names its field."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from pixtral_core import limits
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
from pixtral_gateway.checks.tools import check_calls


def adapter_of(asked: str, served: Sequence[str], adapters: Collection[str]) -> str:
    """The adapter that a request names; empty if the request names the model itself, or no model.

    `served` are the model's own names. Raises NotFound for any other name.
    """
    if not asked or asked in served:
        return ""
    if asked not in adapters:
        names = ", ".join([*served, *adapters])
        raise NotFound(f"no such model: use {names}", "MODEL_NOT_FOUND")
    return asked


def check_parts(parts: Sequence[int], context_length: int) -> None:
    """Raises InvalidRequest if the messages have more parts than the context has tokens: each part
    takes at least one.

    `parts` has the number of parts of each message. This check runs before the messages are read,
    because reading blocks the loop.
    """
    if len(parts) > context_length or sum(parts) > context_length:
        raise InvalidRequest(
            "messages",
            f"the messages have more parts than the context has tokens ({context_length}): leave "
            "out messages",
            "PROMPT_TOO_LONG",
        )


def conversation_of(
    turns: tuple[Turn, ...],
    *,
    max_images: int,
    tools: Tools = NO_TOOLS,
    goes_on: bool = False,
    reasoning_effort: str = "",
) -> Conversation:
    """The conversation. If `goes_on` is set, the answer continues its last turn.

    Raises InvalidRequest for no message, and for more than `max_images` images.
    `pixtral_gateway.prompt` checks the order of roles.
    """
    if not turns:
        raise InvalidRequest("messages", "at least one message is needed")
    check_calls(turns)
    if goes_on and turns[-1].role is not Role.ASSISTANT:
        raise InvalidRequest(
            "continue_final_message", "needs the last message to be an assistant message"
        )
    conversation = Conversation(turns, tools, goes_on, reasoning_effort)
    images = len(conversation.images)
    if images > max_images:
        raise InvalidRequest(
            "messages",
            f"there are {images} images, and a request may have {max_images}: leave some out",
            "TOO_MANY_IMAGES",
        )
    return conversation


def check_sampling(sampling: Sampling, *, vocabulary_size: int) -> None:
    """Raises InvalidRequest for a value that the engine would refuse, or that would harm it."""
    for field, allowed in limits.SAMPLING.items():
        value = getattr(sampling, field)
        if value is not None:
            allowed.check(value, f"sampling.{field}")
    if sampling.max_tokens is not None and (sampling.min_tokens or 0) > sampling.max_tokens:
        raise InvalidRequest("sampling.min_tokens", "must not be above max_tokens")
    _check_strings("sampling.stop", sampling.stop, limits.STOP, limits.STOP_LENGTH)
    _check_strings(
        "sampling.bad_words", sampling.bad_words, limits.BAD_WORDS, limits.BAD_WORD_LENGTH
    )
    for i, word in enumerate(sampling.bad_words):
        if word.isspace():
            raise InvalidRequest(f"sampling.bad_words[{i}]", "must not be only white space")
    for limit, token_ids in (
        (limits.STOP_TOKEN_IDS, sampling.stop_token_ids),
        (limits.ALLOWED_TOKEN_IDS, sampling.allowed_token_ids),
    ):
        limit.check(len(token_ids), limit.path)
        for i, token_id in enumerate(token_ids):
            if token_id >= vocabulary_size:
                raise InvalidRequest(f"{limit.path}[{i}]", "is not in the vocabulary")
    _check_logit_bias(sampling.logit_bias, vocabulary_size)
    if sampling.structured_output is not None:
        check_structured_output(sampling, sampling.structured_output)


def _check_logit_bias(logit_bias: Mapping[int, float], vocabulary_size: int) -> None:
    limits.LOGIT_BIAS.check(len(logit_bias), "sampling.logit_bias")
    for token_id, bias in logit_bias.items():
        path = f"sampling.logit_bias[{token_id}]"
        if token_id >= vocabulary_size:
            raise InvalidRequest(path, "is not in the vocabulary")
        limits.LOGIT_BIAS_VALUE.check(bias, path)


def _check_strings(
    path: str, strings: Sequence[str], count: limits.Count, length: limits.Count
) -> None:
    count.check(len(strings), path)
    for i, string in enumerate(strings):
        length.check(len(string), f"{path}[{i}]")


def check_characters(characters: int, field: str, longest_token: int, context_length: int) -> None:
    """Raises InvalidRequest for text that is too long for the context, whatever its tokens are."""
    if characters > longest_token * context_length:
        raise InvalidRequest(
            field,
            f"the text is longer than the context of {context_length} tokens: shorten it",
            "PROMPT_TOO_LONG",
        )


def fitted(sampling: Sampling, prompt_tokens: int, context_length: int) -> Sampling:
    """The parameters, with `max_tokens` reduced to the tokens that the prompt leaves in the
    context, as in vLLM.

    Raises InvalidRequest if prompt and answer do not fit in `context_length` tokens.
    """
    if prompt_tokens >= context_length:
        raise InvalidRequest(
            "messages",
            f"the prompt has {prompt_tokens} tokens and leaves no room for an answer in the "
            f"context of {context_length}: leave out messages",
            "PROMPT_TOO_LONG",
        )
    room = context_length - prompt_tokens
    if (sampling.min_tokens or 0) > room:
        raise InvalidRequest(
            "sampling.min_tokens",
            f"the context has room for {room} tokens after the prompt: ask for no more",
        )
    if sampling.prompt_logprobs is not None:
        in_all = prompt_tokens * (1 + sampling.prompt_logprobs)
        if not limits.PROMPT_LOGPROBS_IN_ALL.allows(in_all):
            raise InvalidRequest(
                "sampling.prompt_logprobs",
                f"the prompt's {prompt_tokens} tokens have {in_all} log-probabilities: they must "
                f"have {limits.PROMPT_LOGPROBS_IN_ALL}",
            )
    if sampling.max_tokens is None or sampling.max_tokens <= room:
        return sampling
    return replace(sampling, max_tokens=room)


def check_gathered(sampling: Sampling) -> None:
    """Raises InvalidRequest if the request shows that its answer, which is not streamed, would have
    too many log-probabilities."""
    if sampling.logprobs is not None and sampling.max_tokens is not None:
        check_gathered_logprobs(sampling.n * sampling.max_tokens * (1 + sampling.logprobs))


def check_gathered_logprobs(logprobs: int) -> None:
    """Raises InvalidRequest if an answer that is not streamed has too many log-probabilities."""
    if not limits.LOGPROBS_IN_ALL.allows(logprobs):
        raise InvalidRequest(
            "sampling.logprobs",
            f"an answer that is not streamed must have {limits.LOGPROBS_IN_ALL}: ask for fewer, or "
            "stream it",
        )
