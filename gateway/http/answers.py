"""Answers as OpenAI's clients expect them, whole and in chunks."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from gateway.answer import Finished, SoFar, Usage
from gateway.http import tools
from gateway.tools import whole_calls
from pixtral.v1 import chat_pb2

Events = AsyncGenerator[chat_pb2.Choice | Finished]

DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0

_FINISH_REASONS = {
    chat_pb2.FINISH_REASON_STOP: "stop",
    chat_pb2.FINISH_REASON_LENGTH: "length",
    chat_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


async def whole(events: Events, completion_id: str, model: str, *, choices: int) -> dict[str, Any]:
    """A `chat.completion`, once the last token of the last of so many choices is there."""
    texts: list[list[str]] = [[] for _ in range(choices)]
    logprobs: list[list[dict[str, Any]]] = [[] for _ in range(choices)]
    calls: list[list[chat_pb2.ToolCall]] = [[] for _ in range(choices)]
    finish_reasons: list[str | None] = [None] * choices
    ending: dict[str, Any] = {}
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Finished):
                ending = _ending(event)
                if event.prompt_logprobs:
                    told = await asyncio.to_thread(_prompt_logprobs, event.prompt_logprobs)
                    ending["prompt_logprobs"] = told
                continue
            texts[event.index].append(event.text)
            calls[event.index].extend(event.tool_calls)
            logprobs[event.index] += map(_token_logprobs, event.logprobs)
            finish_reasons[event.index] = _FINISH_REASONS.get(event.finish_reason)
    heading = _heading(completion_id, "chat.completion", model)
    told_choices = [
        {
            "index": index,
            "message": _message("".join(texts[index]), calls[index]),
            "logprobs": _logprobs(logprobs[index]),
            "finish_reason": finish_reasons[index],
        }
        for index in range(choices)
    ]
    return {**heading, "choices": told_choices, **ending}


async def chunks(
    events: Events,
    completion_id: str,
    model: str,
    *,
    include_usage: bool,
    so_far: SoFar | None = None,
) -> AsyncGenerator[bytes]:
    """Server-sent events, each a `chat.completion.chunk`; with usage, one more has no choices.

    With `so_far`, which the events' source fills in, each chunk has what its choice has used.
    """
    heading = _heading(completion_id, "chat.completion.chunk", model)
    # As OpenAI has it: where usage is asked for, each chunk has the field.
    usage: dict[str, Any] = {"usage": None} if include_usage else {}
    made: dict[int, int] = {}
    async with aclosing(events):
        async for event in events:
            if not isinstance(event, Finished):
                opening = b""
                if event.index not in made:
                    made[event.index] = 0
                    if so_far is not None:
                        usage = _running(so_far, 0)
                    first = _delta(event.index, {"role": "assistant", "content": ""})
                    opening = _event({**heading, "choices": [first], **usage})
                if so_far is not None:
                    made[event.index] += len(event.token_ids)
                    usage = _running(so_far, made[event.index])
                choice = _delta(
                    event.index,
                    _said(event),
                    _FINISH_REASONS.get(event.finish_reason),
                    _logprobs([_token_logprobs(each) for each in event.logprobs]),
                )
                yield opening + _event({**heading, "choices": [choice], **usage})
            elif include_usage:
                yield _event({**heading, "choices": [], **_ending(event)})
    yield DONE


def _heading(completion_id: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": completion_id, "object": kind, "created": int(time.time()), "model": model}


def _message(text: str, pieces: list[chat_pb2.ToolCall]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if pieces:
        message |= {"content": text or None, "tool_calls": tools.whole(whole_calls(pieces))}
    return message


def _said(choice: chat_pb2.Choice) -> dict[str, Any]:
    if not choice.tool_calls:
        return {"content": choice.text}
    called = {"tool_calls": tools.deltas(choice.tool_calls)}
    return {"content": choice.text, **called} if choice.text else called


def _delta(
    index: int,
    delta: dict[str, Any],
    finish_reason: str | None = None,
    logprobs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(content: list[dict[str, Any]]) -> dict[str, Any] | None:
    return {"content": content, "refusal": None} if content else None


def _token_logprobs(token: chat_pb2.TokenLogprobs) -> dict[str, Any]:
    return {**_logprob(token.chosen), "top_logprobs": [_logprob(each) for each in token.top]}


def _logprob(token: chat_pb2.Logprob) -> dict[str, Any]:
    return {
        "token": token.text,
        # JSON has no infinity; this is vLLM's own stand-in for it.
        "logprob": max(token.logprob, LEAST_LOGPROB),
        "bytes": list(token.text.encode()),
    }


def _prompt_logprobs(
    positions: Sequence[chat_pb2.TokenLogprobs],
) -> list[dict[str, dict[str, Any]] | None]:
    """In vLLM's form: tokens by their ids, the prompt's own first; None for its first token."""
    return [
        {
            str(token.token_id): {
                "logprob": max(token.logprob, LEAST_LOGPROB),
                "rank": token.rank,
                "decoded_token": token.text,
            }
            for token in (position.chosen, *position.top)
        }
        if position.HasField("chosen")
        else None
        for position in positions
    ]


def _ending(finished: Finished) -> dict[str, Any]:
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


def _running(so_far: SoFar, completion_tokens: int) -> dict[str, Any]:
    return {
        "usage": {
            "prompt_tokens": so_far.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": so_far.prompt_tokens + completion_tokens,
        }
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
        },
    }


def _event(chunk: dict[str, Any]) -> bytes:
    # In ASCII: some clients take U+2028 and its like for the end of a line.
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"
