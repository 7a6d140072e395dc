"""POST /v1/messages and POST /v1/messages/count_tokens."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from pixtral_gateway.api.anthropic import errors
from pixtral_gateway.api.anthropic.blocks import Blocks
from pixtral_gateway.api.anthropic.request import CountTokensRequest, MessagesRequest
from pixtral_gateway.api.anthropic.response_schema import TokenCount
from pixtral_gateway.api.anthropic.thinking import effort_of, without_thought
from pixtral_gateway.api.anthropic.writer import MessageWriter
from pixtral_gateway.api.field_names import renamed
from pixtral_gateway.api.http.event_stream import EventStream
from pixtral_gateway.api.http.front import Front
from pixtral_gateway.api.http.middleware import while_client_waits
from pixtral_gateway.checks.conversation import Conversation
from pixtral_gateway.checks.validation import check_sampling, conversation_of

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
FORMS = {MESSAGES: errors.FORM, COUNT: errors.FORM}


class AnthropicApi:
    def __init__(self, front: Front) -> None:
        self._front = front

    def routes(self) -> list[Route]:
        return [
            Route(MESSAGES, self.message, methods=["POST"]),
            Route(COUNT, self.count_tokens, methods=["POST"]),
        ]

    async def message(self, request: Request) -> JSONResponse | EventStream:
        arrival, asked, adapter = await self._front.asked(request, MessagesRequest)
        conversation, name_of = self._conversation(asked)
        with renamed(name_of):
            sampling = asked.sampling(
                disable_any_whitespace=self._front.settings.disable_any_whitespace
            )
            backend = self._front.backend
            sampling = without_thought(sampling, asked.thinking, backend.thinking)
            check_sampling(sampling, vocabulary_size=backend.vocabulary_size)
        writer = MessageWriter(asked.model or self._front.model)
        begun = self._front.begin(
            writer.id,
            arrival,
            conversation,
            sampling,
            adapter=adapter,
            is_gathered=not asked.stream,
        )
        events = self._front.backend.pipeline.stream(begun)
        if asked.stream:
            return EventStream(writer.events(events, name_of))
        async with while_client_waits(request.receive):
            with renamed(name_of):
                return JSONResponse(await writer.whole(events))

    async def count_tokens(self, request: Request) -> JSONResponse:
        tenant = self._front.tenant(request)
        asked = await self._front.read(request, CountTokensRequest)
        asked.check_served()
        self._front.adapter(asked.model)
        conversation, name_of = self._conversation(asked)
        async with while_client_waits(request.receive):
            with renamed(name_of):
                prompt = await self._front.backend.pipeline.count(conversation, tenant)
        answer: TokenCount = {"input_tokens": len(prompt.token_ids)}
        return JSONResponse(answer)

    def _conversation(self, asked: CountTokensRequest) -> tuple[Conversation, Callable[[str], str]]:
        """The conversation, and a function that returns Anthropic's name of a field. Raises
        InvalidRequest."""
        blocks = Blocks(asked, context_length=self._front.backend.tiers.context_length)

        def name_of(field: str) -> str:
            return asked.name_of(blocks.name_of(field))

        with renamed(name_of):
            tools = asked.called_tools()
            conversation = conversation_of(
                blocks.done(),
                max_images=self._front.settings.max_images,
                tools=tools,
                # The answer continues a last message of the assistant, as with Anthropic's own
                # models.
                goes_on=blocks.ends_with_text,
                reasoning_effort=effort_of(
                    asked.thinking, asked.effort, self._front.backend.thinking
                ),
            )
        return conversation, name_of
