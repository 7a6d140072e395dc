"""GET /openapi.json: what it says is what is served.

That all that other tests send and get is as it says, the fixture `http` sees to.
"""

import json
from pathlib import Path
from typing import Any

import httpx
import httpx2
import jsonschema
import openai
import pytest
import schemathesis
from starlette.routing import Route

from pixtral_core.concurrency.shared_limit import SharedLimit
from pixtral_core.server.grpc_interceptor import Gate
from pixtral_core.telemetry.tracing import Tracer
from pixtral_gateway.api.openai import openapi
from pixtral_gateway.api.openai.app import OpenAiApi
from pixtral_gateway.api.openai.openapi import PATH
from pixtral_gateway.api.playground.page import PATHS
from pixtral_gateway.tenancy.tenants import Tenants, digest_of
from tests.support.gateway_harness import Client, closed
from tests.support.http_chat import CHAT, HELLO, LOOK, stream
from tests.support.openapi import JSON, Described

TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.fixture
async def described(http: httpx.AsyncClient) -> Described:
    response = (await http.get(PATH)).raise_for_status()
    assert response.headers["content-type"] == JSON
    return Described(response.json())


def refs(value: Any) -> list[str]:
    match value:
        case list():
            return [ref for each in value for ref in refs(each)]
        case {"$ref": str(ref)}:
            return [ref]
        case dict():
            return refs(list(value.values()))
        case _:
            return []


async def test_it_is_openapi(described: Described) -> None:
    document = described.document
    schemathesis.openapi.from_dict(document).validate()
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    used = {ref.removeprefix("#/components/schemas/") for ref in refs(document)}
    assert used == {*schemas}


async def test_all_routes_but_the_pages_are_in_it(described: Described, tmp_path: Path) -> None:
    settings = closed(tmp_path, page=True)
    app = OpenAiApi(settings, Tenants(None), SharedLimit(1)).app(Gate("closed"), Tracer())
    routed = {
        (route.path_format, method.lower())
        for route in app._router.routes
        if isinstance(route, Route) and route.path not in (PATH, *PATHS)
        for method in (route.methods or set()) - {"HEAD"}
    }
    paths = described.document["paths"]
    assert routed == {(path, method) for path, methods in paths.items() for method in methods}


async def test_each_body_is_told_that_is_read(
    http: httpx.AsyncClient, described: Described
) -> None:
    for path, methods in described.document["paths"].items():
        if "{" not in path:
            for method in methods:
                response = await http.request(method.upper(), path, json={})
                assert described.answer_problem(method, path, response) is None
                assert ("requestBody" in methods[method]) == (response.status_code == 400)


def test_a_route_that_is_not_described_is_no_route() -> None:
    async def endpoint(_: Any) -> None: ...

    with pytest.raises(KeyError, match="/v1/more"):
        openapi.document([Route("/v1/more", endpoint)], "1", has_keys=False)


def test_where_keys_are_needed_it_says_so() -> None:
    async def endpoint(_: Any) -> None: ...

    routes = [Route("/v1/models", endpoint), Route("/health", endpoint)]
    document = openapi.document(routes, "1", has_keys=True)
    schemathesis.openapi.from_dict(document).validate()
    schemes = document["components"]["securitySchemes"]
    assert schemes == {"key": {"type": "http", "scheme": "bearer"}}
    models, health = (document["paths"][path]["get"] for path in ("/v1/models", "/health"))
    assert models["security"] == [{"key": []}]
    assert "401" in models["responses"]
    assert "security" not in health
    assert "401" not in health["responses"]


async def test_it_needs_no_key(tmp_path: Path) -> None:
    keys = tmp_path / "tenants.toml"
    keys.write_text(f'[acme]\nkeys = ["{digest_of("key")}"]\n')
    settings = closed(tmp_path, api_keys=keys)
    gate = Gate("closed")
    app = OpenAiApi(settings, Tenants(keys), SharedLimit(1)).app(gate, Tracer())
    gate.open()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(base_url="http://elsewhere", transport=transport) as http:
        described = Described((await http.get(PATH)).raise_for_status().json())
        refused = await http.get("/v1/models")
    assert refused.status_code == 401
    assert described.answer_problem("get", "/v1/models", refused) is None


async def test_what_openais_client_sends_and_gets_is_in_it(
    client: Client, described: Described
) -> None:
    sent: list[Any] = []
    looking: Any = LOOK

    async def keep(request: httpx2.Request) -> None:
        sent.append(json.loads(request.content))

    http = httpx2.AsyncClient(trust_env=False, event_hooks={"request": [keep]})
    async with openai.AsyncOpenAI(
        base_url=f"{client.url}/v1", api_key="any", max_retries=0, http_client=http
    ) as openai_client:
        answer = await openai_client.chat.completions.create(
            model="pixtral-small",
            messages=looking,
            max_completion_tokens=4,
            temperature=0.5,
            logit_bias={"5": 1},
            stop=["x"],
            tools=[TOOL],
            tool_choice="auto",
            n=2,
            user="me",
            metadata={"a": "b"},
            extra_body={"top_k": -1, "min_p": 0.1, "prompt_logprobs": False},
        )
    (body,) = sent
    assert described.body_problem(CHAT, body) is None
    assert described.problem("ChatCompletion", answer.model_dump(exclude_unset=True)) is None


async def test_each_chunk_is_as_it_says(http: httpx.AsyncClient, described: Described) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    for more in ({}, {"stream_options": options, "logprobs": True, "top_logprobs": 2, "n": 2}):
        *events, done = await stream(http, **more)
        assert done == "[DONE]"
        for event in events:
            assert described.event_problem(CHAT, json.loads(event)) is None


def called(call_id: str) -> dict[str, Any]:
    return {"id": call_id, "function": {"name": "look"}}


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": None},
        {"messages": [{"role": "function", "content": "a"}]},
        {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 1}]}]},
        {"messages": [*HELLO, {"role": "assistant", "tool_calls": [{"id": "a"}]}]},
        {"max_completion_tokens": 0},
        {"temperature": 2.1},
        {"top_p": 0},
        {"top_logprobs": 21, "logprobs": True},
        {"n": 65},
        {"max_tokens": 2**31},
        {"stop": ""},
        {"stop": "a" * 1025},
        {"stop": ["a"] * 65},
        {"stop_token_ids": [5] * 65},
        {"allowed_token_ids": [5] * 1025},
        {"bad_words": ["a"] * 65},
        {"bad_words": ["a" * 129]},
        {"structured_outputs": {"json": " " * 32_769}},
        {"structured_outputs": {"regex": "a" * 4097}},
        {"structured_outputs": {"grammar": "a" * 16_385}},
        {"structured_outputs": {"choice": []}},
        {"structured_outputs": {"choice": ["a" * 513]}},
        {"tools": [{"function": {"name": "a" * 65}}]},
        {"tools": [{"function": {"name": f"a{i}"}} for i in range(129)]},
        {"messages": [*HELLO, {"role": "assistant", "tool_calls": [called("a" * 257)]}, *HELLO]},
        {"messages": [*HELLO, {"role": "assistant", "tool_calls": [called("a")] * 129}, *HELLO]},
        {"logit_bias": dict.fromkeys(map(str, range(1025)), 1)},
        {"logit_bias": {"cat": 1}},
        {"logit_bias": {"5": 101}},
        {"response_format": {"type": "xml"}},
        {"tool_choice": "perhaps"},
        {"tools": [{"type": "retrieval"}]},
        {"best_of": 2},
        {"functions": [{}]},
        {"prompt_mode": "reasoning"},
    ],
)
async def test_what_is_refused_is_wrong_by_it(
    http: httpx.AsyncClient, described: Described, wrong: dict[str, Any]
) -> None:
    body = {"messages": HELLO} | wrong
    response = await http.post(CHAT, json=body)
    assert response.status_code == 400
    assert described.answer_problem("post", CHAT, response) is None
    assert described.body_problem(CHAT, body) is not None
