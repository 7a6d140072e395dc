"""Completions as OpenAI's clients expect them, whole and in chunks."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from pixtral_core.concurrency.merge import Merged
from pixtral_core.generation.logprobs import Logprob, TokenLogprobs
from pixtral_gateway.api.openai.chat_response import (
    DONE,
    FINISH_REASONS,
    LEAST_LOGPROB,
    as_id,
    ending_of,
    event_of,
    name_of,
    prompt_logprobs_of,
    running_usage,
)
from pixtral_gateway.api.openai.completions.request import CompletionRequest
from pixtral_gateway.api.openai.completions.response_schema import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
)
from pixtral_gateway.api.openai.response_schema import FinishReason, Usage
from pixtral_gateway.request import Begun, Delta, Event, Finished

# The events of all prompts, each with the index of its prompt.
Events = Merged[Event]


@dataclass(slots=True)
class _Choice:
    """The tokens of one choice so far. `offset` is the position of its next token in its text."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    offset: int = 0
    has_begun: bool = False


class CompletionWriter:
    """Writes the answer to a request of one or several prompts with `n` choices each.

    For each prompt, `echoes` has the text that precedes its choices, and `first_tokens` the text of
    its first token. Both texts are empty without an echo.
    """

    def __init__(
        self,
        completion_id: str,
        model: str,
        asked: CompletionRequest,
        echoes: Sequence[str],
        first_tokens: Sequence[str],
    ) -> None:
        self._id = completion_id
        self._model = model
        self._asked = asked
        self._echoes = echoes
        self._first_tokens = first_tokens
        self._n = asked.n or 1
        self._as_ids = bool(asked.return_tokens_as_token_ids)
        self._prompts: dict[int, Sequence[int]] = {}
        self._finished: dict[int, Finished] = {}
        self._choices = [_Choice() for _ in range(self._n * len(echoes))]

    async def whole(self, events: Events) -> Completion:
        """A `text_completion`, once the last token of the last choice has come."""
        async with aclosing(events):
            async for index, event in events:
                if isinstance(event, Delta):
                    choice = self._choices[index * self._n + event.index]
                    choice.texts.append(event.text)
                    choice.token_ids.extend(event.token_ids)
                    choice.logprobs.extend(event.logprobs)
                    choice.finish_reason = FINISH_REASONS[event.finish_reason]
                    choice.stop_reason = event.stop_reason
                else:
                    self._note(index, event)
        made = await asyncio.to_thread(self._made)
        answer: Completion = {
            "id": self._id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._model,
            "choices": made,
            "usage": self._usage(),
        }
        if len(self._finished) == 1:
            answer["pixtral"] = ending_of(self._finished[0])["pixtral"]
        return answer

    async def chunks(self, events: Events) -> AsyncGenerator[bytes]:
        """Server-sent events, each a `text_completion` with the new text."""
        heading: CompletionChunk = {
            "id": self._id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._model,
            "choices": [],
        }
        if self._asked.include_usage:
            heading["usage"] = None
        with self._asked.own_names():
            async with aclosing(events):
                async for index, event in events:
                    if not isinstance(event, Delta):
                        self._note(index, event)
                        continue
                    at = index * self._n + event.index
                    choice = self._choices[at]
                    choice.token_ids.extend(event.token_ids)
                    if self._asked.continuous_usage:
                        heading["usage"] = running_usage(
                            len(self._prompts[index]), len(choice.token_ids)
                        )
                    yield event_of({**heading, "choices": [self._new(at, event)]})
            if self._asked.include_usage:
                heading["usage"] = self._usage()
                if len(self._finished) == 1:
                    heading["pixtral"] = ending_of(self._finished[0])["pixtral"]
                yield event_of(heading)
        yield DONE

    def _note(self, index: int, event: Begun | Finished) -> None:
        if isinstance(event, Begun):
            self._prompts[index] = event.prompt_token_ids
        else:
            self._finished[index] = event

    def _new(self, at: int, delta: Delta) -> CompletionChoice:
        choice, prompt = self._choices[at], at // self._n
        text = "" if self._asked.is_echo_alone else delta.text
        is_first, choice.has_begun = not choice.has_begun, True
        if is_first:
            text = self._echoes[prompt] + text
        logprobs = None
        if delta.logprobs:
            logprobs = _logprobs(delta.logprobs, choice.offset, as_ids=self._as_ids)
            choice.offset += sum(len(each.chosen.text) for each in delta.logprobs if each.chosen)
        made: CompletionChoice = {
            "index": at,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": FINISH_REASONS[delta.finish_reason],
            "stop_reason": delta.stop_reason,
        }
        if self._asked.return_token_ids:
            made["token_ids"] = list(delta.token_ids)
            if is_first:
                made["prompt_token_ids"] = list(self._prompts[prompt])
        return made

    def _made(self) -> list[CompletionChoice]:
        asked = self._asked
        made: list[CompletionChoice] = []
        for at, choice in enumerate(self._choices):
            prompt = at // self._n
            text, logprobs = "".join(choice.texts), choice.logprobs
            prompt_ids = self._prompts[prompt]
            if asked.is_echo_alone:
                text, logprobs = "", []
            if asked.echo:
                text = self._echoes[prompt] + text
                logprobs = [*self._finished[prompt].prompt_logprobs, *logprobs]
            answered: CompletionChoice = {
                "index": at,
                "text": text,
                "logprobs": None
                if asked.logprobs is None
                else _logprobs(
                    logprobs, 0, self._first_tokens[prompt], prompt_ids, as_ids=self._as_ids
                ),
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
            }
            if asked.return_token_ids:
                answered["prompt_token_ids"] = list(prompt_ids)
                answered["token_ids"] = choice.token_ids
            if asked.prompt_logprobs is not None:
                answered["prompt_logprobs"] = prompt_logprobs_of(
                    self._finished[prompt].prompt_logprobs
                )
            made.append(answered)
        return made

    def _usage(self) -> Usage:
        """The usage of all prompts together."""
        each = [event.usage for event in self._finished.values()]
        prompt = sum(usage.prompt_tokens for usage in each)
        completion = sum(usage.completion_tokens for usage in each)
        return {
            **running_usage(prompt, completion),
            "prompt_tokens_details": {
                "cached_tokens": sum(usage.cached_tokens for usage in each),
                "image_tokens": 0,
            },
        }


def _logprobs(
    tokens: Iterable[TokenLogprobs],
    offset: int,
    first_text: str = "",
    prompt: Sequence[int] = (),
    *,
    as_ids: bool,
) -> CompletionLogprobs:
    """Log-probabilities in OpenAI's form. The first token of a prompt has none, because no token
    comes before it.

    Offsets are positions in the text, even if tokens are named by their ids.
    """
    made: CompletionLogprobs = {
        "text_offset": [],
        "token_logprobs": [],
        "tokens": [],
        "top_logprobs": [],
    }
    for token in tokens:
        made["text_offset"].append(offset)
        offset += len(first_text if token.chosen is None else token.chosen.text)
        if token.chosen is None:
            made["tokens"].append(as_id(prompt[0]) if as_ids else first_text)
            made["token_logprobs"].append(None)
            made["top_logprobs"].append(None)
            continue
        name = name_of(token.chosen, as_ids=as_ids)
        made["tokens"].append(name)
        made["token_logprobs"].append(_bounded(token.chosen))
        # The chosen token is always among the entries. If two tokens have the same text, the entry
        # is that of the likelier one.
        top = {name: _bounded(token.chosen)}
        for each in token.top:
            top.setdefault(name_of(each, as_ids=as_ids), _bounded(each))
        made["top_logprobs"].append(top)
    return made


def _bounded(logprob: Logprob) -> float:
    return max(logprob.logprob, LEAST_LOGPROB)
