"""Chat completions as OpenAI's clients expect them, whole and in chunks."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
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

_FINISH_REASONS: dict[request.FinishReason | None, FinishReason | None] = {
    None: None,
    request.FinishReason.STOP: "stop",
    request.FinishReason.LENGTH: "length",
    request.FinishReason.TOOL_CALLS: "tool_calls",
}


class _Gathered:
    """One choice as it grows. Log-probabilities, of which there may be a million, are JSON already:
    as objects they would take six times the memory, and seconds to write at the end."""

    def __init__(self) -> None:
        self.text = StringIO()
        self.calls: list[ToolCallDelta] = []
        self.logprobs: list[str] = []
        self.finish_reason: FinishReason | None = None

    def add(self, delta: request.Delta) -> None:
        self.text.write(delta.text)
        self.calls.extend(delta.tool_calls)
        self.logprobs += (_json(_token_logprobs(each)) for each in delta.logprobs)
        self.finish_reason = _FINISH_REASONS[delta.finish_reason]

    def choice(self, index: int) -> str:
        choice: Choice = {
            "index": index,
            "message": _message(self.text.getvalue(), self.calls),
            "logprobs": _logprobs([]),
            "finish_reason": self.finish_reason,
        }
        content = f'{{"content":[{",".join(self.logprobs)}],"refusal":null}}'
        return _with(choice, "logprobs", content if self.logprobs else None)


async def whole(events: Events, completion_id: str, model: str, *, choices: int) -> bytes:
    """A `chat.completion` in JSON, once the last token of the last of so many choices is there."""
    gathered, written = [_Gathered() for _ in range(choices)], b""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Begun):
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
                **_ending(event),
            }
            # Here the request still has its memory.
            if event.prompt_logprobs or any(each.logprobs for each in gathered):
                written = await asyncio.to_thread(_written, answer, gathered, event)
            else:
                written = _written(answer, gathered, event)
    return written


def _written(answer: ChatCompletion, gathered: list[_Gathered], finished: Finished) -> bytes:
    choices = ",".join(each.choice(index) for index, each in enumerate(gathered))
    made = _with(answer, "choices", f"[{choices}]")
    if finished.prompt_logprobs:
        # One by one: what writes JSON holds up the event loop, too.
        positions = ",".join(map(_json, map(_prompt_logprobs, finished.prompt_logprobs)))
        made = f'{made[:-1]},"prompt_logprobs":[{positions}]}}'
    return made.encode()


def _with(value: Choice | ChatCompletion, name: str, written: str | None) -> str:
    """JSON of `value`, whose field `name` is `written` already, if that is given."""
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

    Where usage is asked for, one more chunk has it and no choices; where continuous usage is asked
    for, each chunk has the usage of its choice until then.
    """
    heading: ChatCompletionChunk = {
        "id": completion_id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
        "choices": [],
    }
    # As OpenAI has it: where usage is asked for, each chunk has the field.
    if asked.include_usage:
        heading["usage"] = None
    prompt_tokens, made = 0, dict[int, int]()
    with asked.own_names():
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Begun):
                    prompt_tokens = event.prompt_tokens
                    continue
                if isinstance(event, Finished):
                    if asked.include_usage:
                        end = _ending(event)
                        yield _event({**heading, "usage": end["usage"], "pixtral": end["pixtral"]})
                    continue
                opening = b""
                if event.index not in made:
                    made[event.index] = 0
                    if asked.continuous_usage:
                        heading["usage"] = _running(prompt_tokens, 0)
                    first = _delta(event.index, {"role": "assistant", "content": ""})
                    opening = _event({**heading, "choices": [first]})
                if asked.continuous_usage:
                    made[event.index] += len(event.token_ids)
                    heading["usage"] = _running(prompt_tokens, made[event.index])
                choice = _delta(
                    event.index,
                    _content(event),
                    _FINISH_REASONS[event.finish_reason],
                    _logprobs([_token_logprobs(each) for each in event.logprobs]),
                )
                yield opening + _event({**heading, "choices": [choice]})
    yield DONE


def _message(text: str, pieces: list[ToolCallDelta]) -> AssistantMessage:
    message: AssistantMessage = {"role": "assistant", "content": text, "refusal": None}
    if pieces:
        message["content"] = text or None
        message["tool_calls"] = tools.whole(whole_calls(pieces))
    return message


def _content(delta: request.Delta) -> Delta:
    if not delta.tool_calls:
        return {"content": delta.text}
    content: Delta = {"content": delta.text} if delta.text else {}
    content["tool_calls"] = tools.deltas(delta.tool_calls)
    return content


def _delta(
    index: int,
    delta: Delta,
    finish_reason: FinishReason | None = None,
    logprobs: Logprobs | None = None,
) -> ChunkChoice:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(content: list[TokenLogprobs]) -> Logprobs | None:
    return {"content": content, "refusal": None} if content else None


def _token_logprobs(token: logprobs.TokenLogprobs) -> TokenLogprobs:
    assert token.chosen is not None  # noqa: S101 - for mypy: a completion's tokens were chosen
    return {**_logprob(token.chosen), "top_logprobs": [_logprob(each) for each in token.top]}


def _logprob(token: logprobs.Logprob) -> Logprob:
    return {
        "token": token.text,
        # JSON has no infinity; this is vLLM's own stand-in for it.
        "logprob": max(token.logprob, LEAST_LOGPROB),
        "bytes": list(token.text.encode()),
    }


def _prompt_logprobs(position: logprobs.TokenLogprobs) -> dict[str, PromptLogprob] | None:
    """In vLLM's form: tokens by their ids, the prompt's own first; None for its first token."""
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


def _ending(finished: Finished) -> Ending:
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


def _running(prompt_tokens: int, completion_tokens: int) -> Usage:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _usage(usage: request.Usage) -> Usage:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
        },
    }


def _event(chunk: ChatCompletionChunk) -> bytes:
    return b"data: " + _json(chunk).encode() + b"\n\n"


def _json(value: Any) -> str:
    # In ASCII: some clients take U+2028 and its like for the end of a line.
    return json.dumps(value, separators=(",", ":"))
