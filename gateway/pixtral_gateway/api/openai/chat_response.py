"""Chat completions as OpenAI's clients expect them, whole and in chunks."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from io import StringIO
from typing import Any

from pixtral_core.generation import logprobs
from pixtral_gateway import request
from pixtral_gateway.api.openai import tools
from pixtral_gateway.api.openai.request_schema import ChatRequest
from pixtral_gateway.api.openai.response_schema import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    Ending,
    FinishReason,
    Logprob,
    Logprobs,
    PromptLogprob,
    TokenLogprobs,
    Usage,
)
from pixtral_gateway.request import Begun, Event, Finished, ToolCallDelta, whole_calls

Events = AsyncGenerator[Event]

DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0

FINISH_REASONS: dict[request.FinishReason | None, FinishReason | None] = {
    None: None,
    request.FinishReason.STOP: "stop",
    request.FinishReason.LENGTH: "length",
    request.FinishReason.TOOL_CALLS: "tool_calls",
}


class _Gathered:
    """One choice so far. It stores log-probabilities as JSON, because a choice may have a million:
    objects would need several times the memory, and seconds to write at the end."""

    def __init__(
        self, beginning: str, *, has_token_ids: bool, has_reasoning: bool, has_ids_as_tokens: bool
    ) -> None:
        self.reasoning = StringIO() if has_reasoning else None
        self.text = StringIO()
        self.text.write(beginning)
        self.calls: list[ToolCallDelta] = []
        self.logprobs: list[str] = []
        self.token_ids: list[int] | None = [] if has_token_ids else None
        self.last: request.Delta | None = None
        self._has_ids_as_tokens = has_ids_as_tokens

    def add(self, delta: request.Delta) -> None:
        self.text.write(delta.text)
        if self.reasoning is not None:
            self.reasoning.write(delta.reasoning)
        self.calls.extend(delta.tool_calls)
        self.logprobs += (
            _json(token_logprobs_of(each, as_ids=self._has_ids_as_tokens))
            for each in delta.logprobs
        )
        if self.token_ids is not None:
            self.token_ids.extend(delta.token_ids)
        self.last = delta

    def choice(self, index: int) -> str:
        last = self.last
        choice: Choice = {
            "index": index,
            "message": _message(
                self.text.getvalue(),
                self.calls,
                self.reasoning.getvalue() if self.reasoning is not None else "",
            ),
            "logprobs": None,
            "finish_reason": FINISH_REASONS[last.finish_reason if last else None],
            "stop_reason": last.stop_reason if last else None,
        }
        if self.token_ids is not None:
            choice["token_ids"] = self.token_ids
        content = f'{{"content":[{",".join(self.logprobs)}],"refusal":null}}'
        return _with(choice, "logprobs", content if self.logprobs else None)


async def whole(
    events: Events, completion_id: str, model: str, asked: ChatRequest, *, choices: int
) -> bytes:
    """A `chat.completion` in JSON, once the last token of the last choice has come."""
    has_token_ids = bool(asked.return_token_ids)
    gathered = [
        _Gathered(
            asked.beginning(),
            has_token_ids=has_token_ids,
            has_reasoning=asked.include_reasoning is not False,
            has_ids_as_tokens=bool(asked.return_tokens_as_token_ids),
        )
        for _ in range(choices)
    ]
    prompt: Sequence[int] = ()
    written = b""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Begun):
                prompt = event.prompt_token_ids
                continue
            if not isinstance(event, Finished):
                gathered[event.index].add(event)
                continue
            answer: ChatCompletion = {
                "id": completion_id,
                "object": "chat.completion",
                "created": int(time.time()),
                "model": model,
                "choices": [],
                **ending_of(event),
            }
            if has_token_ids:
                answer["prompt_token_ids"] = list(prompt)
            # The answer is written inside the loop, while the request still has its share of the
            # memory limit.
            if event.prompt_logprobs or any(each.logprobs for each in gathered):
                written = await asyncio.to_thread(_written, answer, gathered, event)
            else:
                written = _written(answer, gathered, event)
    return written


def _written(answer: ChatCompletion, gathered: list[_Gathered], finished: Finished) -> bytes:
    choices = ",".join(each.choice(index) for index, each in enumerate(gathered))
    made = _with(answer, "choices", f"[{choices}]")
    if finished.prompt_logprobs:
        # The positions are written one by one, because writing one large JSON text blocks the event
        # loop even from a thread.
        positions = ",".join(map(_json, map(_prompt_logprob_of, finished.prompt_logprobs)))
        made = f'{made[:-1]},"prompt_logprobs":[{positions}]}}'
    return made.encode()


def _with(value: Choice | ChatCompletion, name: str, written: str | None) -> str:
    """The JSON of `value`. `written`, if given, is the JSON of the field `name`."""
    if written is None:
        return _json(value)
    others = {key: each for key, each in value.items() if key != name}
    return f'{_json(others)[:-1]},"{name}":{written}}}'


async def chunks(
    events: Events,
    completion_id: str,
    model: str,
    asked: ChatRequest,
) -> AsyncGenerator[bytes]:
    """Server-sent events, each a `chat.completion.chunk`.

    With `include_usage`, one more chunk has the usage and no choices. With continuous usage, each
    chunk has the usage of its choice so far. Without either option, the chunk that ends the last
    choice has the usage, as in Mistral's API, whose clients cannot ask for it.
    """
    stream = _Chunks(completion_id, model, asked)
    with asked.own_names():
        async with aclosing(events):
            async for event in events:
                if chunk := stream.add(event):
                    yield chunk
    yield DONE


class _Chunks:
    """The chunks of one stream."""

    def __init__(self, completion_id: str, model: str, asked: ChatRequest) -> None:
        self._asked = asked
        self._heading: ChatCompletionChunk = {
            "id": completion_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
            "choices": [],
        }
        # With `include_usage`, each chunk has the field, as in OpenAI's API.
        if asked.include_usage:
            self._heading["usage"] = None
        self._head = _head(self._heading)
        self._is_counted = asked.continuous_usage
        self._has_token_ids = bool(asked.return_token_ids)
        self._prompt: Sequence[int] = ()
        self._made = dict[int, int]()
        self._unfinished = asked.n or 1
        # The chunk that ends the last choice waits for the usage.
        self._last: ChatCompletionChunk | None = None

    def add(self, event: Event) -> bytes:
        """The lines that the event adds to the stream, if any."""
        match event:
            case Begun():
                self._prompt = event.prompt_token_ids
                return b""
            case Finished():
                return self._end(event)
            case _:
                return self._opening(event.index) + self._delta(event)

    def _opening(self, index: int) -> bytes:
        """The chunks that begin a choice; empty if it has begun."""
        if index in self._made:
            return b""
        is_first = not self._made
        self._made[index] = 0
        self._count(index, 0)
        chunk: ChatCompletionChunk = {
            **self._heading,
            "choices": [_delta(index, {"role": "assistant", "content": ""})],
        }
        if is_first and self._has_token_ids:
            chunk["prompt_token_ids"] = list(self._prompt)
        opening = event_of(chunk)
        if beginning := self._asked.beginning():
            opening += self._event(_delta(index, {"content": beginning}))
        return opening

    def _delta(self, event: request.Delta) -> bytes:
        self._count(event.index, len(event.token_ids))
        if self._asked.include_reasoning is False and event.reasoning:
            event = replace(event, reasoning="")
        choice = _delta(
            event.index,
            _content(event),
            FINISH_REASONS[event.finish_reason],
            _logprobs(event.logprobs, as_ids=bool(self._asked.return_tokens_as_token_ids)),
            event.stop_reason,
        )
        if self._has_token_ids:
            choice["token_ids"] = list(event.token_ids)
        elif _is_empty(event) and not self._is_counted:
            return b""
        self._unfinished -= event.finish_reason is not None
        if self._asked.stream_options is None and not self._unfinished:
            self._last = {**self._heading, "choices": [choice]}
            return b""
        return self._event(choice)

    def _event(self, choice: ChunkChoice) -> bytes:
        """The same bytes as `event_of` makes of the chunk. The part that is equal in all chunks is
        written once."""
        return b'%b,"choices":[%b]}\n\n' % (self._head, _json(choice).encode())

    def _count(self, index: int, tokens: int) -> None:
        if self._is_counted:
            self._made[index] += tokens
            self._heading["usage"] = running_usage(len(self._prompt), self._made[index])
            self._head = _head(self._heading)

    def _end(self, event: Finished) -> bytes:
        if self._last is None and not self._asked.include_usage:
            return b""
        ending = ending_of(event)
        chunk = self._last or self._heading
        return event_of({**chunk, "usage": ending["usage"], "pixtral": ending["pixtral"]})


def _is_empty(delta: request.Delta) -> bool:
    """Whether the delta has nothing to send, for example while the parser reads the beginning of a
    tool call."""
    said = delta.text or delta.reasoning or delta.tool_calls
    return not (said or delta.logprobs or delta.finish_reason)


def _message(text: str, pieces: list[ToolCallDelta], reasoning: str) -> AssistantMessage:
    message: AssistantMessage = {"role": "assistant", "content": text, "refusal": None}
    if reasoning:
        message["reasoning"] = message["reasoning_content"] = reasoning
    if pieces:
        message["content"] = text or None
        message["tool_calls"] = tools.whole(whole_calls(pieces))
    return message


def _content(delta: request.Delta) -> Delta:
    if not delta.tool_calls and not delta.reasoning:
        return {"content": delta.text}
    content: Delta = {"content": delta.text} if delta.text else {}
    if delta.reasoning:
        content["reasoning"] = content["reasoning_content"] = delta.reasoning
    if delta.tool_calls:
        content["tool_calls"] = tools.deltas(delta.tool_calls)
    return content


def _delta(
    index: int,
    delta: Delta,
    finish_reason: FinishReason | None = None,
    logprobs: Logprobs | None = None,
    stop_reason: str | int | None = None,
) -> ChunkChoice:
    return {
        "index": index,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
        "stop_reason": stop_reason,
    }


def _logprobs(found: Sequence[logprobs.TokenLogprobs], *, as_ids: bool) -> Logprobs | None:
    if not found:
        return None
    return {"content": [token_logprobs_of(each, as_ids=as_ids) for each in found], "refusal": None}


def token_logprobs_of(token: logprobs.TokenLogprobs, *, as_ids: bool = False) -> TokenLogprobs:
    assert token.chosen is not None  # noqa: S101 - for mypy: a completion's tokens were chosen
    top = [_logprob(each, as_ids=as_ids) for each in token.top]
    return {**_logprob(token.chosen, as_ids=as_ids), "top_logprobs": top}


def name_of(token: logprobs.Logprob, *, as_ids: bool) -> str:
    """A token's text, or its id in vLLM's form."""
    return as_id(token.token_id) if as_ids else token.text


def as_id(token_id: int) -> str:
    return f"token_id:{token_id}"


def _logprob(token: logprobs.Logprob, *, as_ids: bool) -> Logprob:
    return {
        "token": name_of(token, as_ids=as_ids),
        # JSON has no infinity. vLLM sends this number in its place.
        "logprob": max(token.logprob, LEAST_LOGPROB),
        "bytes": list(token.text.encode()),
    }


def prompt_logprobs_of(
    positions: Sequence[logprobs.TokenLogprobs],
) -> list[dict[str, PromptLogprob] | None]:
    """The log-probabilities of a prompt in vLLM's form: tokens by their ids, the prompt's own token
    first. The prompt's first token has None."""
    return [_prompt_logprob_of(position) for position in positions]


def _prompt_logprob_of(position: logprobs.TokenLogprobs) -> dict[str, PromptLogprob] | None:
    if position.chosen is None:
        return None
    return {
        str(token.token_id): {
            "logprob": max(token.logprob, LEAST_LOGPROB),
            "rank": token.rank,
            "decoded_token": token.text,
        }
        for token in (position.chosen, *position.top)
    }


def ending_of(finished: Finished) -> Ending:
    timings = finished.timings
    return {
        "usage": _usage(finished.usage),
        "pixtral": {
            "timings": {
                "queue_seconds": round(timings.queue, 6),
                "encode_seconds": round(timings.encode, 6),
                "time_to_first_token_seconds": round(timings.time_to_first_token, 6),
                "total_seconds": round(timings.total, 6),
            },
            "images": [
                {
                    "sha256": image.sha256,
                    "width": image.width,
                    "height": image.height,
                    "tokens": image.tokens,
                    "cached": image.cached,
                    "encode_seconds": round(image.encode, 6),
                }
                for image in finished.images
            ],
        },
    }


def running_usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _usage(usage: request.Usage) -> Usage:
    made: Usage = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
        },
    }
    if usage.reasoning_tokens:
        made["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return made


def event_of(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + _json(chunk).encode() + b"\n\n"


def _head(heading: ChatCompletionChunk) -> bytes:
    """The beginning of an event, up to the choices of its chunk."""
    others = {key: each for key, each in heading.items() if key != "choices"}
    return b"data: " + _json(others)[:-1].encode()


# The JSON is ASCII, because some clients take U+2028 and similar characters for the end of a line.
_json = json.JSONEncoder(separators=(",", ":")).encode
