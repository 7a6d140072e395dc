"""Chat completions as OpenAI's clients expect them, whole and in chunks."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

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


async def whole(events: Events, completion_id: str, model: str, *, choices: int) -> ChatCompletion:
    """A `chat.completion`, once the last token of the last of so many choices is there."""
    texts: list[list[str]] = [[] for _ in range(choices)]
    token_logprobs: list[list[TokenLogprobs]] = [[] for _ in range(choices)]
    calls: list[list[ToolCallDelta]] = [[] for _ in range(choices)]
    finish_reasons: list[FinishReason | None] = [None] * choices
    ending: Ending | None = None
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Finished):
                ending = ending_of(event)
                if event.prompt_logprobs:
                    ending["prompt_logprobs"] = await asyncio.to_thread(
                        prompt_logprobs_of, event.prompt_logprobs
                    )
                continue
            if isinstance(event, Begun):
                continue
            texts[event.index].append(event.text)
            calls[event.index].extend(event.tool_calls)
            token_logprobs[event.index] += map(_token_logprobs, event.logprobs)
            finish_reasons[event.index] = FINISH_REASONS[event.finish_reason]
    assert ending is not None  # noqa: S101 - for mypy: no events are without an end
    made: list[Choice] = [
        {
            "index": index,
            "message": _message("".join(texts[index]), calls[index]),
            "logprobs": _logprobs(token_logprobs[index]),
            "finish_reason": finish_reasons[index],
        }
        for index in range(choices)
    ]
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": made,
        **ending,
    }


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
                        end = ending_of(event)
                        yield event_of(
                            {**heading, "usage": end["usage"], "pixtral": end["pixtral"]}
                        )
                    continue
                opening = b""
                if event.index not in made:
                    made[event.index] = 0
                    if asked.continuous_usage:
                        heading["usage"] = running_usage(prompt_tokens, 0)
                    first = _delta(event.index, {"role": "assistant", "content": ""})
                    opening = event_of({**heading, "choices": [first]})
                if asked.continuous_usage:
                    made[event.index] += len(event.token_ids)
                    heading["usage"] = running_usage(prompt_tokens, made[event.index])
                choice = _delta(
                    event.index,
                    _content(event),
                    FINISH_REASONS[event.finish_reason],
                    _logprobs([_token_logprobs(each) for each in event.logprobs]),
                )
                yield opening + event_of({**heading, "choices": [choice]})
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


def prompt_logprobs_of(
    positions: Sequence[logprobs.TokenLogprobs],
) -> list[dict[str, PromptLogprob] | None]:
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
        if position.chosen is not None
        else None
        for position in positions
    ]


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
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
        },
    }


def event_of(chunk: ChatCompletionChunk) -> bytes:
    # In ASCII: some clients take U+2028 and its like for the end of a line.
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"
