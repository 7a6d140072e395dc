"""The routes of OpenAI's API; each converts a request for the pipeline, and the answer back."""

import uuid
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router

from pixtral_core.concurrency.shared_limit import SharedLimit
from pixtral_core.errors import InvalidRequest
from pixtral_core.server.grpc_interceptor import Gate
from pixtral_core.telemetry.tracing import Tracer
from pixtral_gateway.api.anthropic import routes as anthropic
from pixtral_gateway.api.anthropic.routes import AnthropicApi
from pixtral_gateway.api.backend import Backend
from pixtral_gateway.api.http.event_stream import EventStream
from pixtral_gateway.api.http.front import Front
from pixtral_gateway.api.http.middleware import RequestMiddleware, while_client_waits
from pixtral_gateway.api.openai import chat_response, openapi
from pixtral_gateway.api.openai.completions.route import Completions
from pixtral_gateway.api.openai.messages import to_conversation
from pixtral_gateway.api.openai.request_schema import (
    ChatRequest,
    DetokenizeRequest,
    Message,
    TokenizeRequest,
)
from pixtral_gateway.api.openai.response_schema import ModelCard, ModelList, Text, Tokens, Version
from pixtral_gateway.api.openai.responses import route as responses
from pixtral_gateway.api.openai.responses.route import Responses
from pixtral_gateway.api.operator import QUIET, OperatorApi
from pixtral_gateway.api.playground.page import PATHS, Page
from pixtral_gateway.checks.conversation import Conversation, Tools
from pixtral_gateway.checks.validation import check_sampling
from pixtral_gateway.settings import GatewaySettings
from pixtral_gateway.tenancy.tenants import Tenant, Tenants

_QUIET = frozenset({"/version", openapi.PATH, *QUIET, *PATHS})
_FORMS = {"/v1/responses": responses.FORM, **anthropic.FORMS}
_CAPABILITIES = {"completion_chat": True, "function_calling": True, "vision": True}


class OpenAiApi:
    """`backend` is set once the checkpoint is loaded; the gate lets no request in before."""

    def __init__(self, settings: GatewaySettings, tenants: Tenants, room: SharedLimit) -> None:
        """`room` bounds the bytes of bodies that are being received."""
        self._settings = settings
        self._model = settings.model_names[0]
        self._front = Front(settings, tenants, room)

    @property
    def backend(self) -> Backend:
        return self._front.backend

    @backend.setter
    def backend(self, backend: Backend) -> None:
        self._front.backend = backend

    def app(self, gate: Gate, tracer: Tracer) -> RequestMiddleware:
        settings = self._settings
        page = Page(settings.listen.rpartition(":")[2]).routes() if settings.has_page else []
        routes = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", Completions(self._front).complete, methods=["POST"]),
            Route("/v1/responses", Responses(self._front).respond, methods=["POST"]),
            *AnthropicApi(self._front).routes(),
            Route("/v1/models", self.models),
            # Some clients end their base URL with a slash.
            Route("/v1/models/", self.models, name="models_with_slash"),
            Route("/v1/models/{model:path}", self.model),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
            *OperatorApi(self._front, gate).routes(),
            Route("/version", version),
        ]
        has_keys = settings.api_keys is not None
        schema = openapi.route(lambda: openapi.document(routes, _version(), has_keys=has_keys))
        router = Router([*routes, schema, *page], redirect_slashes=False)
        return RequestMiddleware(router, quiet=_QUIET, gate=gate, tracer=tracer, forms=_FORMS)

    async def chat(self, request: Request) -> Response | EventStream:
        arrival, asked, adapter = await self._front.asked(request, ChatRequest)
        tools = asked.called_tools()
        conversation = self._conversation(
            asked.messages,
            tools,
            goes_on=asked.goes_on(),
            reasoning_effort=asked.reasoning_effort,
        )
        sampling = asked.sampling(disable_any_whitespace=self._settings.disable_any_whitespace)
        with asked.own_names():
            check_sampling(sampling, vocabulary_size=self.backend.vocabulary_size)
        model = asked.model or self._model
        begun = self._front.begin(
            f"chatcmpl-{uuid.uuid4().hex}",
            arrival,
            conversation,
            sampling,
            adapter=adapter,
            priority=asked.priority,
            is_gathered=not asked.stream,
        )
        answer_id = asked.answer_id(begun.id)
        if self._settings.force_include_usage:
            asked.always_include_usage()
        asked.forget()
        events = self.backend.pipeline.stream(begun)
        if asked.stream:
            return EventStream(chat_response.chunks(events, answer_id, model, asked))
        async with while_client_waits(request.receive):
            with asked.own_names():
                answer = await chat_response.whole(
                    events, answer_id, model, asked, choices=sampling.n
                )
            return Response(answer, media_type="application/json")

    async def tokenize(self, request: Request) -> JSONResponse:
        tenant = self._front.tenant(request)
        asked = await self._front.read(request, TokenizeRequest)
        asked.check_served()
        async with while_client_waits(request.receive):
            tokens = await self._tokens(asked, tenant)
            context_length = self.backend.tiers.context_length
        answer: Tokens = {
            "count": len(tokens),
            "max_model_len": context_length,
            "tokens": list(tokens),
            "token_strs": None,
        }
        return JSONResponse(answer)

    async def detokenize(self, request: Request) -> JSONResponse:
        tenant = self._front.tenant(request)
        asked = await self._front.read(request, DetokenizeRequest)
        asked.check_served()
        self._front.adapter(asked.model)
        async with while_client_waits(request.receive):
            text = await self.backend.pipeline.detokenize(asked.tokens, tenant)
        answer: Text = {"prompt": text}
        return JSONResponse(answer)

    async def models(self, request: Request) -> JSONResponse:
        self._front.tenant(request)
        names = (*self._settings.model_names, *self.backend.tiers.adapters)
        answer: ModelList = {"object": "list", "data": [self._card(name) for name in names]}
        return JSONResponse(answer)

    async def model(self, request: Request) -> JSONResponse:
        self._front.tenant(request)
        name = request.path_params["model"]
        self._front.adapter(name)
        return JSONResponse(self._card(name or self._model))

    async def _tokens(self, asked: TokenizeRequest, tenant: Tenant) -> Sequence[int]:
        self._front.adapter(asked.model)
        if asked.messages is not None:
            tools = asked.called_tools()
            conversation = self._conversation(asked.messages, tools, goes_on=asked.goes_on())
            return (await self.backend.pipeline.count(conversation, tenant)).token_ids
        if asked.prompt is None:
            raise InvalidRequest("messages", "messages or a prompt is needed")
        return await self.backend.pipeline.tokenize(
            asked.prompt, tenant, bos=asked.add_special_tokens is not False
        )

    def _conversation(
        self,
        messages: Sequence[Message],
        tools: Tools,
        *,
        goes_on: bool = False,
        reasoning_effort: str | None = None,
    ) -> Conversation:
        return to_conversation(
            messages,
            tools,
            max_images=self._settings.max_images,
            context_length=self.backend.tiers.context_length,
            goes_on=goes_on,
            reasoning_effort=reasoning_effort,
        )

    def _card(self, name: str) -> ModelCard:
        is_model = name in self._settings.model_names
        return {
            "id": name,
            "object": "model",
            "created": self._front.created,
            "owned_by": "pixtral-serve",
            "root": self._model if is_model else name,
            "parent": None if is_model else self._model,
            "max_model_len": self.backend.tiers.context_length,
            "pixtral": {
                "max_images": self._settings.max_images,
                "max_image_bytes": self._settings.max_image_bytes,
                "max_image_pixels": self._settings.max_image_pixels,
            },
            # Mistral's client requires these two fields of a model.
            "type": "base",
            "capabilities": _CAPABILITIES,
        }


async def version(request: Request) -> JSONResponse:
    answer: Version = {"version": _version()}
    return JSONResponse(answer)


def _version() -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version("pixtral-serve")
    return "unknown"
