"""POST /v1/responses."""

import json
import uuid

from starlette.requests import Request
from starlette.responses import JSONResponse

from pixtral_core.errors import ServingError
from pixtral_gateway.api.field_names import renamed
from pixtral_gateway.api.http.error_form import ErrorForm
from pixtral_gateway.api.http.event_stream import EventStream
from pixtral_gateway.api.http.front import Front
from pixtral_gateway.api.http.middleware import while_client_waits
from pixtral_gateway.api.openai.errors import body_of, flat_param_of
from pixtral_gateway.api.openai.response_schema import ErrorAnswer
from pixtral_gateway.api.openai.responses.input_items import InputItems
from pixtral_gateway.api.openai.responses.request import ResponsesRequest
from pixtral_gateway.api.openai.responses.writer import ResponseWriter
from pixtral_gateway.checks.validation import check_sampling, conversation_of


def _body(error: ServingError) -> ErrorAnswer:
    return body_of(error, flat_param_of)


def _event(error: ServingError) -> bytes:
    # This is the form of an error before the stream begins. Later, an event of the writer ends the
    # stream.
    return b"event: error\ndata: " + json.dumps(_body(error)).encode() + b"\n\n"


FORM = ErrorForm(_body, _event)


class Responses:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def respond(self, request: Request) -> JSONResponse | EventStream:
        arrival, asked, adapter = await self._front.asked(request, ResponsesRequest)
        backend = self._front.backend
        items = InputItems(
            asked.instructions, asked.input, context_length=backend.tiers.context_length
        )

        def name_of(field: str) -> str:
            return asked.name_of(items.name_of(field))

        with renamed(name_of):
            conversation = conversation_of(
                items.done(),
                max_images=self._front.settings.max_images,
                tools=asked.called_tools(),
                goes_on=items.goes_on,
                reasoning_effort=asked.reasoning_effort(),
            )
            sampling = asked.sampling(
                disable_any_whitespace=self._front.settings.disable_any_whitespace
            )
            check_sampling(sampling, vocabulary_size=backend.vocabulary_size)
        begun = self._front.begin(
            f"resp_{uuid.uuid4().hex}",
            arrival,
            conversation,
            sampling,
            adapter=adapter,
            priority=asked.priority,
            is_gathered=not asked.stream,
        )
        model = asked.model or self._front.model
        writer = ResponseWriter(asked.answer_id(begun.id), model, asked)
        events = backend.pipeline.stream(begun)
        if asked.stream:
            return EventStream(writer.events(events, name_of), writer.error_event)
        async with while_client_waits(request.receive):
            with renamed(name_of):
                return JSONResponse(await writer.whole(events))
