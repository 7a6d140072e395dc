"""GET /openapi.json: the routes, their requests and responses, in OpenAPI 3.1.

The document is made from the routes themselves, the models that read the bodies, and the types
against which answers are checked. As in vLLM, a client needs no key to read it.
"""

import asyncio
import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pixtral_gateway.api.anthropic import response_schema as anthropic_types
from pixtral_gateway.api.anthropic.request import CountTokensRequest, MessagesRequest
from pixtral_gateway.api.openai.completions.request import CompletionRequest
from pixtral_gateway.api.openai.completions.response_schema import Completion, CompletionChunk
from pixtral_gateway.api.openai.request_schema import (
    ChatRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from pixtral_gateway.api.openai.response_schema import (
    ChatCompletion,
    ChatCompletionChunk,
    ErrorAnswer,
    Load,
    ModelCard,
    ModelList,
    Text,
    Tokens,
    Version,
)
from pixtral_gateway.api.openai.responses import response_schema as response_types
from pixtral_gateway.api.openai.responses.request import ResponsesRequest

PATH = "/openapi.json"
_REF = "#/components/schemas/{model}"
_JSON = "application/json"
_OK = 200

_ERRORS = {
    400: "A field is wrong, or cannot be served; `param` names it.",
    401: "The API key is missing, or belongs to no tenant.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The content type is not application/json.",
    421: "The gateway serves its own machine alone, and `Host` is not an address of that.",
    429: "The service has no room for the request now, or the tenant has reached a limit.",
    500: "The service has a fault.",
    503: "The service starts or shuts down, or a tier that the request needs is not available.",
    504: "The time for a request has passed.",
}
_OF_BODIES = (400, 408, 413, 415, 429)
_OF_REQUESTS = (*_OF_BODIES, 404, 504)
_OF_ANY = (500, 503)
_HEADERS = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}
_HEADER_SCHEMAS = {
    "WWW-Authenticate": {"const": "Bearer"},
    # Seconds.
    "Retry-After": {"type": "integer", "minimum": 1},
}


@dataclass(frozen=True, slots=True)
class Operation:
    """The body and the answers of a route. `events` are the types of a stream's events, and `error`
    is the type of the errors. `end` is a sentence about the end of a stream, if that is not such an
    event.
    """

    summary: str
    answer: Any
    body: type[BaseModel] | None = None
    events: tuple[Any, ...] = ()
    end: str = ""
    errors: tuple[int, ...] = ()
    error: Any = ErrorAnswer
    is_for_tenants: bool = True

    @property
    def types(self) -> set[Any]:
        of_json = (self.body, self.answer, *self.events, self.error)
        return {each for each in of_json if each not in (None, str)}


DONE = "The data of the last event is [DONE]."

OPERATIONS = {
    "/v1/chat/completions": Operation(
        "An answer to a conversation, whole or as a stream",
        answer=ChatCompletion,
        body=ChatRequest,
        events=(ChatCompletionChunk, ErrorAnswer),
        end=DONE,
        errors=_OF_REQUESTS,
    ),
    "/v1/completions": Operation(
        "The continuation of a prompt, whole or as a stream",
        answer=Completion,
        body=CompletionRequest,
        events=(CompletionChunk, ErrorAnswer),
        end=DONE,
        errors=_OF_REQUESTS,
    ),
    "/v1/responses": Operation(
        "An answer to input items, whole or as a stream",
        answer=response_types.Response,
        body=ResponsesRequest,
        events=get_args(response_types.StreamEvent),
        errors=_OF_REQUESTS,
    ),
    "/v1/messages": Operation(
        "An answer in Anthropic's form, whole or as a stream",
        answer=anthropic_types.MessageAnswer,
        body=MessagesRequest,
        events=(*get_args(anthropic_types.MessageEvent), anthropic_types.MessageError),
        errors=_OF_REQUESTS,
        error=anthropic_types.MessageError,
    ),
    "/v1/messages/count_tokens": Operation(
        "The number of tokens of a request in Anthropic's form",
        answer=anthropic_types.TokenCount,
        body=CountTokensRequest,
        errors=_OF_REQUESTS,
        error=anthropic_types.MessageError,
    ),
    "/v1/models": Operation("The model and its adapters", answer=ModelList),
    "/v1/models/": Operation("The model and its adapters, as /v1/models", answer=ModelList),
    "/v1/models/{model}": Operation(
        "The model or one of its adapters", answer=ModelCard, errors=(404,)
    ),
    "/tokenize": Operation(
        "The tokens of a conversation, or of a text",
        answer=Tokens,
        body=TokenizeRequest,
        errors=_OF_REQUESTS,
    ),
    "/detokenize": Operation(
        "The text of tokens",
        answer=Text,
        body=DetokenizeRequest,
        errors=_OF_REQUESTS,
    ),
    "/ping": Operation("Whether the gateway is ready", answer=None, is_for_tenants=False),
    "/load": Operation("The number of running requests", answer=Load),
    "/metrics": Operation("Prometheus metrics", answer=str),
    "/health": Operation("Whether the gateway is ready", answer=None, is_for_tenants=False),
    "/version": Operation("The gateway's version", answer=Version, is_for_tenants=False),
}


class _Schemas(GenerateJsonSchema):
    """Leaves out titles, which repeat the names of fields, and defaults, because an absent field
    means null."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def document(routes: Iterable[Route], version: str, *, has_keys: bool) -> dict[str, Any]:
    """The document. Raises KeyError for a route whose answers are unknown."""
    shown = [(route, OPERATIONS[route.path_format]) for route in routes]
    used = {type_ for _, each in shown for type_ in each.types}
    refs, components = TypeAdapter.json_schemas(
        [
            (type_.__name__, "validation", TypeAdapter(type_))
            for type_ in sorted(used, key=lambda type_: str(type_.__name__))
        ],
        ref_template=_REF,
        schema_generator=_Schemas,
    )
    schemas = {name: schema for (name, _), schema in refs.items()}
    paths: dict[str, dict[str, Any]] = {}
    for route, operation in shown:
        methods = (route.methods or set()) - {"HEAD"}
        for method in methods:
            found = _operation(route, operation, schemas, has_keys=has_keys)
            if len(methods) > 1:
                found["operationId"] += f"_{method.lower()}"
            paths.setdefault(route.path_format, {})[method.lower()] = found
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "pixtral-serve", "version": version},
        "paths": paths,
        "components": {"schemas": components["$defs"]},
    }
    if has_keys:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return described


def route(describe: Callable[[], dict[str, Any]]) -> Route:
    """Makes the document at the first request for it, because that takes long and few clients
    request it."""

    @functools.cache
    def body() -> bytes:
        return json.dumps(describe(), separators=(",", ":")).encode()

    async def schema(request: Request) -> Response:
        return Response(await asyncio.to_thread(body), media_type=_JSON)

    return Route(PATH, schema)


def _operation(
    route: Route, operation: Operation, schemas: dict[str, Any], *, has_keys: bool
) -> dict[str, Any]:
    errors = {*operation.errors, *_OF_ANY}
    if operation.is_for_tenants:
        errors |= {401} if has_keys else {421}
    told: dict[str, Any] = {
        "operationId": route.name,
        "summary": operation.summary,
        "responses": {
            str(_OK): _answer(operation, schemas),
            **{
                str(status): _error(status, schemas[operation.error.__name__])
                for status in sorted(errors)
            },
        },
    }
    if route.param_convertors:
        told["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in route.param_convertors
        ]
    if operation.body is not None:
        schema = schemas[operation.body.__name__]
        told["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    if operation.is_for_tenants and has_keys:
        told["security"] = [{"key": []}]
    return told


def _answer(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"description": operation.summary}
    if operation.answer is str:
        told["content"] = {"text/plain": {"schema": {"type": "string"}}}
    elif operation.answer is not None:
        told["content"] = {_JSON: {"schema": schemas[operation.answer.__name__]}}
    if operation.events:
        told["content"]["text/event-stream"] = {
            "schema": {
                "type": "string",
                "description": f"Each event's data has one of these types. {operation.end}".strip(),
                "contentMediaType": _JSON,
                "contentSchema": {
                    "anyOf": [schemas[each.__name__] for each in operation.events],
                },
            }
        }
    return told


def _error(status: int, schema: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "description": _ERRORS[status],
        "content": {_JSON: {"schema": schema}},
    }
    if name := _HEADERS.get(status):
        told["headers"] = {name: {"required": True, "schema": _HEADER_SCHEMAS[name]}}
    return told
