"""A message as Anthropic's clients expect it, whole and as events in their order."""

import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, cast

from pixtral_gateway.api.anthropic.response_schema import (
    MessageAnswer,
    MessageEvent,
    MessageUsage,
    StopReason,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
)
from pixtral_gateway.api.event_writer import EventWriter
from pixtral_gateway.api.openai.chat_response import Events, ending_of
from pixtral_gateway.request import Begun, Delta, Event, Finished, FinishReason, ToolCallDelta

_STOP_REASONS: Mapping[FinishReason | None, StopReason] = {
    None: "end_turn",
    FinishReason.STOP: "end_turn",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.TOOL_CALLS: "tool_use",
}


class MessageWriter(EventWriter[MessageEvent]):
    """Builds one message, and returns the events of each step."""

    def __init__(self, model: str) -> None:
        self.id = f"msg_{uuid.uuid4().hex}"
        self._model = model
        self._blocks: list[TextBlock | ThinkingBlock | ToolUseBlock] = []
        self._pieces: list[str] = []
        self._is_open = False
        self._has_begun = False
        self._prompt_tokens = 0
        self._stop_reason: StopReason = "end_turn"
        self._stop_sequence: str | None = None

    async def whole(self, events: Events) -> MessageAnswer:
        """The message, once its last token has come."""
        finished = await self.gathered(events)
        return {
            **self._message(_usage_of(finished)),
            "content": self._blocks,
            "stop_reason": self._stop_reason,
            "stop_sequence": self._stop_sequence,
            "pixtral": ending_of(finished)["pixtral"],
        }

    def _events_of(self, event: Event) -> Iterable[MessageEvent]:
        match event:
            case Begun():
                self._prompt_tokens = event.prompt_tokens
            case Delta():
                yield from self._begin(event)
                yield from self._add(event)
            case Finished():
                yield from self._end()
                yield from self._ending(event)

    def _begin(self, delta: Delta) -> Iterable[MessageEvent]:
        if not self._has_begun:
            self._has_begun = True
            usage = _usage(self._prompt_tokens, delta.cached_tokens, len(delta.token_ids))
            yield {"type": "message_start", "message": self._message(usage)}

    def _add(self, delta: Delta) -> Iterable[MessageEvent]:
        self._stop_reason = _STOP_REASONS[delta.finish_reason]
        if isinstance(delta.stop_reason, str) and delta.finish_reason is FinishReason.STOP:
            self._stop_reason, self._stop_sequence = "stop_sequence", delta.stop_reason
        if delta.reasoning:
            if not self._is_open or self._blocks[-1]["type"] != "thinking":
                yield from self._open({"type": "thinking", "thinking": "", "signature": ""})
            self._pieces.append(delta.reasoning)
            yield self._delta({"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.text:
            if not self._is_open or self._blocks[-1]["type"] != "text":
                yield from self._open({"type": "text", "text": ""})
            self._pieces.append(delta.text)
            yield self._delta({"type": "text_delta", "text": delta.text})
        for piece in delta.tool_calls:
            yield from self._add_call(piece)

    def _add_call(self, piece: ToolCallDelta) -> Iterable[MessageEvent]:
        if piece.id:
            block: ToolUseBlock = {
                "type": "tool_use",
                "id": piece.id,
                "name": piece.name,
                "input": {},
            }
            yield from self._open(block)
        if piece.arguments:
            self._pieces.append(piece.arguments)
            yield self._delta({"type": "input_json_delta", "partial_json": piece.arguments})

    def _open(self, block: TextBlock | ThinkingBlock | ToolUseBlock) -> Iterable[MessageEvent]:
        yield from self._close()
        self._is_open, self._pieces = True, []
        self._blocks.append(block)
        index = len(self._blocks) - 1
        # The event has a copy, because the block will change.
        yield {"type": "content_block_start", "index": index, "content_block": block.copy()}

    def _close(self) -> Iterable[MessageEvent]:
        if not self._is_open:
            return
        block, whole = self._blocks[-1], "".join(self._pieces)
        if block["type"] == "text":
            block["text"] = whole
        elif block["type"] == "thinking":
            block["thinking"] = whole
        else:
            block["input"] = _object(whole)
        self._is_open = False
        yield {"type": "content_block_stop", "index": len(self._blocks) - 1}

    def _end(self) -> Iterable[MessageEvent]:
        if not self._blocks:
            # Clients expect a message to have a block.
            yield from self._open({"type": "text", "text": ""})
        yield from self._close()

    def _ending(self, finished: Finished) -> Iterable[MessageEvent]:
        yield {
            "type": "message_delta",
            "delta": {"stop_reason": self._stop_reason, "stop_sequence": self._stop_sequence},
            "usage": _usage_of(finished),
            "pixtral": ending_of(finished)["pixtral"],
        }
        yield {"type": "message_stop"}

    def _delta(self, delta: Any) -> MessageEvent:
        index = len(self._blocks) - 1
        return {"type": "content_block_delta", "index": index, "delta": delta}

    def _message(self, usage: MessageUsage) -> MessageAnswer:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }


def _object(arguments: str) -> dict[str, Any]:
    """The object in a tool call's arguments; empty if the call was cut off, or the model wrote no
    object."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _usage_of(finished: Finished) -> MessageUsage:
    usage = finished.usage
    return _usage(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)


def _usage(prompt: int, cached: int, output: int) -> MessageUsage:
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": output,
    }
