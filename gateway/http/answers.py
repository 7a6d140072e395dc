"""Answers as OpenAI's clients expect them, whole and in chunks."""

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from gateway.answer import Finished, Usage
from pixtral.v1 import chat_pb2

Events = AsyncGenerator[chat_pb2.Choice | Finished]

DONE = b"data: [DONE]\n\n"

_FINISH_REASONS = {
    chat_pb2.FINISH_REASON_STOP: "stop",
    chat_pb2.FINISH_REASON_LENGTH: "length",
}


async def whole(events: Events, completion_id: str, model: str) -> dict[str, Any]:
    """A `chat.completion`, once the last token is there."""
    texts, finish_reason, ending = [], None, {}
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Finished):
                ending = _ending(event)
            else:
                texts.append(event.text)
                finish_reason = _FINISH_REASONS.get(event.finish_reason)
    message = {"role": "assistant", "content": "".join(texts), "refusal": None}
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": finish_reason,
    }
    heading = _heading(completion_id, "chat.completion", model)
    return {**heading, "choices": [choice], **ending}


async def chunks(
    events: Events, completion_id: str, model: str, *, include_usage: bool
) -> AsyncGenerator[bytes]:
    """Server-sent events, each a `chat.completion.chunk`; with usage, one more has no choices."""
    heading = _heading(completion_id, "chat.completion.chunk", model)
    # As OpenAI has it: where usage is asked for, each chunk has the field.
    usage: dict[str, Any] = {"usage": None} if include_usage else {}
    opening = _event(
        {**heading, "choices": [_delta({"role": "assistant", "content": ""})], **usage}
    )
    async with aclosing(events):
        async for event in events:
            if not isinstance(event, Finished):
                finish_reason = _FINISH_REASONS.get(event.finish_reason)
                choice = _delta({"content": event.text}, finish_reason)
                yield opening + _event({**heading, "choices": [choice], **usage})
                opening = b""
            elif include_usage:
                yield _event({**heading, "choices": [], **_ending(event)})
    yield DONE


def _heading(completion_id: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": completion_id, "object": kind, "created": int(time.time()), "model": model}


def _delta(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


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
                }
                for image in finished.images
            ],
        },
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
