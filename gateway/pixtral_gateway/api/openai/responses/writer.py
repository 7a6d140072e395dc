"""Writes a response as OpenAI's clients expect it: whole, or as events in their order."""

import time
import uuid
from collections.abc import Iterable
from typing import Any, cast

from pixtral_core.errors import ServingError
from pixtral_gateway.api.event_writer import EventWriter, sent
from pixtral_gateway.api.openai.chat_response import Events, ending_of, token_logprobs_of
from pixtral_gateway.api.openai.errors import body_of, flat_param_of, status_of
from pixtral_gateway.api.openai.response_schema import TokenLogprobs
from pixtral_gateway.api.openai.responses.request import ResponsesRequest
from pixtral_gateway.api.openai.responses.response_schema import (
    ItemStatus,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
    Response,
    ResponseError,
    ResponseStatus,
    StreamEvent,
)
from pixtral_gateway.request import Delta, Event, Finished, FinishReason, ToolCallDelta


class ResponseWriter(EventWriter[StreamEvent]):
    """Builds one response, and writes each step as events.

    An item is open from its first piece until the next item begins or the response ends.
    """

    def __init__(self, response_id: str, model: str, asked: ResponsesRequest) -> None:
        self._id = response_id
        self._model = model
        self._asked = asked
        self._created = int(time.time())
        self._items: list[OutputItem] = []
        self._open: OutputItem | None = None
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self._sequence = 0
        self._finish_reason: FinishReason | None = None

    async def whole(self, events: Events) -> Response:
        """The response, once its last token has come."""
        finished = await self.gathered(events)
        return self._ended(finished)

    def _events_of(self, event: Event) -> Iterable[StreamEvent]:
        match event:
            case Delta():
                yield from self._begin()
                yield from self._add(event)
            case Finished():
                yield from self._end()
                response = self._ended(event)
                yield self._event(f"response.{response['status']}", response=response)

    def error_event(self, error: ServingError) -> bytes:
        """The last event of a stream that fails."""
        status = status_of(error)
        code = "rate_limit_exceeded" if status == 429 else "invalid_prompt"
        failure = {
            "code": code if status < 500 else "server_error",
            "message": body_of(error, flat_param_of)["error"]["message"],
        }
        response = self._response("failed")
        response["error"] = cast("ResponseError", failure)
        return sent([self._event("response.failed", response=response)])

    def _begin(self) -> Iterable[StreamEvent]:
        if not self._sequence:
            yield self._event("response.created", response=self._response("in_progress"))
            yield self._event("response.in_progress", response=self._response("in_progress"))

    def _add(self, delta: Delta) -> Iterable[StreamEvent]:
        self._finish_reason = delta.finish_reason
        if delta.reasoning:
            yield from self._add_reasoning(delta.reasoning)
        # The API has no field for the log-probabilities of a thought.
        if delta.text or (delta.logprobs and not delta.reasoning):
            yield from self._add_text(delta)
        for piece in delta.tool_calls:
            yield from self._add_call(piece)

    def _add_text(self, delta: Delta) -> Iterable[StreamEvent]:
        if self._open is None or self._open["type"] != "message":
            yield from self._close("completed")
            yield from self._open_message()
        logprobs = [token_logprobs_of(each) for each in delta.logprobs]
        self._pieces.append(delta.text)
        self._logprobs += logprobs
        yield self._of_item(
            "response.output_text.delta", content_index=0, delta=delta.text, logprobs=logprobs
        )

    def _add_reasoning(self, text: str) -> Iterable[StreamEvent]:
        if self._open is None or self._open["type"] != "reasoning":
            yield from self._close("completed")
            item: OutputReasoning = {
                "type": "reasoning",
                "id": f"rs_{uuid.uuid4().hex}",
                "summary": [],
                "content": [],
                "status": "in_progress",
            }
            yield from self._open_item(item)
            yield self._of_item(
                "response.content_part.added", content_index=0, part=_reasoning_part("")
            )
        self._pieces.append(text)
        yield self._of_item("response.reasoning_text.delta", content_index=0, delta=text)

    def _add_call(self, piece: ToolCallDelta) -> Iterable[StreamEvent]:
        if piece.id:
            yield from self._close("completed")
            call: OutputCall = {
                "type": "function_call",
                "id": f"fc_{uuid.uuid4().hex}",
                "call_id": piece.id,
                "name": piece.name,
                "arguments": "",
                "status": "in_progress",
            }
            yield from self._open_item(call)
        if piece.arguments:
            self._pieces.append(piece.arguments)
            yield self._of_item("response.function_call_arguments.delta", delta=piece.arguments)

    def _end(self) -> Iterable[StreamEvent]:
        if not self._items:
            yield from self._open_message()
        is_cut = self._finish_reason is FinishReason.LENGTH
        yield from self._close("incomplete" if is_cut else "completed")

    def _open_message(self) -> Iterable[StreamEvent]:
        message: OutputMessage = {
            "type": "message",
            "id": f"msg_{uuid.uuid4().hex}",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        yield from self._open_item(message)
        yield self._of_item("response.content_part.added", content_index=0, part=_text_part("", []))

    def _open_item(self, item: OutputItem) -> Iterable[StreamEvent]:
        self._open, self._pieces, self._logprobs = item, [], []
        self._items.append(item)
        yield self._event(
            "response.output_item.added", output_index=len(self._items) - 1, item=item.copy()
        )

    def _close(self, status: ItemStatus) -> Iterable[StreamEvent]:
        item = self._open
        if item is None:
            return
        whole = "".join(self._pieces)
        if item["type"] == "message":
            logprobs = self._logprobs
            part = _text_part(whole, logprobs)
            item["content"] = [part]
            yield self._of_item(
                "response.output_text.done", content_index=0, text=whole, logprobs=logprobs
            )
            yield self._of_item("response.content_part.done", content_index=0, part=part)
        elif item["type"] == "reasoning":
            thought = _reasoning_part(whole)
            item["content"] = [thought]
            yield self._of_item("response.reasoning_text.done", content_index=0, text=whole)
            yield self._of_item("response.content_part.done", content_index=0, part=thought)
        else:
            item["arguments"] = whole
            yield self._of_item(
                "response.function_call_arguments.done", name=item["name"], arguments=whole
            )
        item["status"] = status
        yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)
        self._open = None

    def _of_item(self, kind: str, **more: Any) -> StreamEvent:
        assert self._open is not None  # noqa: S101 - for mypy: only an open item comes here
        return self._event(
            kind, item_id=self._open["id"], output_index=len(self._items) - 1, **more
        )

    def _event(self, kind: str, **more: Any) -> StreamEvent:
        event = {"type": kind, "sequence_number": self._sequence, **more}
        self._sequence += 1
        return cast("StreamEvent", event)

    def _ended(self, finished: Finished) -> Response:
        is_cut = self._finish_reason is FinishReason.LENGTH
        response = self._response("incomplete" if is_cut else "completed")
        if is_cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        usage = finished.usage
        response["completed_at"] = int(time.time())
        response["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.cached_tokens,
                "cache_write_tokens": 0,
                "image_tokens": usage.image_tokens,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        response["pixtral"] = ending_of(finished)["pixtral"]
        return response

    def _response(self, status: ResponseStatus) -> Response:
        asked = self._asked
        text = {"format": {"type": "text"}}
        if asked.text is not None:
            text |= asked.text.model_dump(by_alias=True, exclude_none=True)
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._model,
            "output": list(self._items) if status != "in_progress" else [],
            "usage": None,
            "background": False,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": asked.max_tool_calls,
            "metadata": asked.metadata or {},
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None, **(asked.reasoning or {})},
            "service_tier": "default",
            "store": False,
            "temperature": asked.temperature,
            "text": text,
            "tool_choice": "auto" if asked.tool_choice is None else asked.tool_choice,
            "tools": asked.tools or [],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": asked.top_p,
            "truncation": "disabled",
            "user": asked.user,
        }


def _reasoning_part(text: str) -> ReasoningText:
    return {"type": "reasoning_text", "text": text}


def _text_part(text: str, logprobs: list[TokenLogprobs]) -> OutputText:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
