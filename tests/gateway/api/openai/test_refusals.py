"""Refusals over HTTP: in OpenAI's shape, by the field, with nothing of it repeated."""

import asyncio
import base64
import json
from typing import Any

import httpx
import pytest

from pixtral_core.errors import DeadlineExceeded, Overloaded, ServingError, Unavailable
from pixtral_gateway.api.http import body
from tests.support.fake_tiers import (
    FakeDecoder,
    FakeEncoder,
    breaks_midway,
    never_begins,
    never_ends,
    refuses,
)
from tests.support.gateway_harness import Client, eventually, permits
from tests.support.gateway_pictures import picture
from tests.support.http_chat import CHAT, HELLO, LOOK, URL, stream

WORD = "xylophone"


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def shown(data: bytes) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def tool(name: str = "look", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def called(call: dict[str, Any], *answered: str) -> dict[str, Any]:
    results = [{"role": "tool", "content": "a", "tool_call_id": each} for each in answered]
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"messages": [*HELLO, asked, *results]}


IMAGE_PATH = "messages.0.content.0.image_url"
INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "messages"),
    "messages null": ({"messages": None}, "messages"),
    "messages no list": ({"messages": WORD}, "messages"),
    "a message no object": ({"messages": [WORD]}, "messages.0"),
    "no role": ({"messages": [{"content": WORD}]}, "messages.0.role"),
    "another role": ({"messages": [{"role": WORD, "content": "a"}]}, "messages.0.role"),
    "no content": ({"messages": [{"role": "user"}]}, "messages.0.content"),
    "content a number": ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
    "a part no object": (
        {"messages": [{"role": "user", "content": [WORD]}]},
        "messages.0.content.0",
    ),
    "text no text": ({"messages": user({"type": "text", "text": 1})}, "messages.0.content.0.text"),
    "another part": ({"messages": user({"type": WORD})}, "messages.0.content.0.type"),
    "audio": ({"messages": user({"type": "input_audio"})}, "messages.0.content.0.type"),
    "detail": (
        {"messages": user({"type": "image_url", "image_url": {"url": URL, "detail": WORD}})},
        f"{IMAGE_PATH}.detail",
    ),
    "no URL": ({"messages": user({"type": "image_url", "image_url": {}})}, IMAGE_PATH),
    "a web URL": (
        {
            "messages": user(
                {"type": "image_url", "image_url": {"url": f"https://{WORD}.example/a.png"}}
            )
        },
        IMAGE_PATH,
    ),
    "no base64": (
        {"messages": user({"type": "image_url", "image_url": f"data:image/png;base64,{WORD}!"})},
        IMAGE_PATH,
    ),
    "not an image": ({"messages": user(shown(WORD.encode()))}, IMAGE_PATH),
    "an image too large": ({"messages": user(shown(picture(9, 9) + bytes(100_000)))}, IMAGE_PATH),
    "too many images": (
        {"messages": user(*[{"type": "image_url", "image_url": URL}] * 4)},
        "messages",
    ),
    "an image of the assistant's": (
        {
            "messages": [
                *HELLO,
                {"role": "assistant", "content": [{"type": "image_url", "image_url": URL}]},
                *HELLO,
            ]
        },
        "messages.1.content.0.image_url",
    ),
    "an answer last": (
        {"messages": [*HELLO, {"role": "assistant", "content": WORD}]},
        "messages.1.role",
    ),
    "a result after a question": (
        {"messages": [*HELLO, {"role": "tool", "tool_call_id": "a", "content": WORD}]},
        "messages.1.role",
    ),
    "too many parts": (
        {"messages": [{"role": "user", "content": ["a"] * 40_000}]},
        "messages",
    ),
    "temperature": ({"temperature": -1}, "temperature"),
    "temperature no number": ({"temperature": WORD}, "temperature"),
    "max_tokens": ({"max_tokens": 0}, "max_tokens"),
    "max_tokens below 0": ({"max_tokens": -1}, "max_tokens"),
    "max_tokens of many digits": ({"max_tokens": 10**30}, "max_tokens"),
    "min_tokens": ({"max_tokens": 1, "min_tokens": 2}, "min_tokens"),
    "a continuation of nothing": ({"continue_final_message": True}, "continue_final_message"),
    "a continuation and a new message": (
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
    ),
    "an option of vLLM's alone": ({"logprob_token_ids": [1]}, "logprob_token_ids"),
    "an option of a structure": (
        {"structured_outputs": {"regex": "a", "whitespace_pattern": WORD}},
        "structured_outputs.whitespace_pattern",
    ),
    "request_id": ({"request_id": WORD * 30}, "request_id"),
    "max_completion_tokens": ({"max_completion_tokens": 0}, "max_completion_tokens"),
    "stop": ({"stop": ["a", ""]}, "stop.1"),
    "stop no text": ({"stop": [1]}, "stop.0"),
    "stop_token_ids": ({"stop_token_ids": [1 << 30]}, "stop_token_ids.0"),
    "stream_options": ({"stream_options": WORD}, "stream_options"),
    "tools no list": ({"tools": WORD}, "tools"),
    "a tool without a function": ({"tools": [{"type": "function"}]}, "tools.0.function"),
    "another kind of tool": ({"tools": [{"type": WORD}]}, "tools.0.type"),
    "a tool's name": ({"tools": [tool("go"), tool(f"{WORD} 1")]}, "tools.1.function.name"),
    "a tool twice": ({"tools": [tool("go"), tool("go")]}, "tools.1.function.name"),
    "a tool's parameters": ({"tools": [tool(parameters=WORD)]}, "tools.0.function.parameters"),
    "a tool's schema": (
        {"tools": [tool("go"), tool(parameters={"properties": {"a": {"type": WORD}}})]},
        "tools.1.function.parameters",
    ),
    "tool_choice": ({"tool_choice": "required"}, "tool_choice"),
    "another tool_choice": ({"tools": [tool()], "tool_choice": WORD}, "tool_choice"),
    "a tool that is not there": (
        {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": WORD}}},
        "tool_choice.function.name",
    ),
    "a call that must be made, and more": (
        {"tools": [tool()], "tool_choice": "required", "bad_words": [WORD]},
        "bad_words",
    ),
    "a call that must be made, and a format": (
        {"tools": [tool()], "tool_choice": "required", "response_format": {"type": "json_object"}},
        "response_format",
    ),
    "a result of nothing": (
        {"messages": [{"role": "tool", "content": "a", "tool_call_id": "b"}]},
        "messages.0.role",
    ),
    "a function's result": (
        {"messages": [{"role": "function", "content": "a", "name": "b"}]},
        "messages.0.role",
    ),
    "a call without a function": (called({"id": WORD}), "messages.1.tool_calls.0"),
    "a call without an id": (called({"function": {"name": "a"}}), "messages.1.tool_calls.0.id"),
    "a call's name": (
        called({"id": "a", "function": {"name": f"{WORD} 1"}}),
        "messages.1.tool_calls.0.function.name",
    ),
    "a call's arguments": (
        called({"id": "a", "function": {"name": "a", "arguments": 7}}),
        "messages.1.tool_calls.0.function.arguments",
    ),
    "arguments too deep": (
        called({"id": "a", "function": {"name": "a", "arguments": "[" * 99 + "]" * 99}}, "a"),
        "messages.1.tool_calls.0.function.arguments",
    ),
    "a call without a result": (
        called({"id": "a", "function": {"name": "a", "arguments": "{}"}}),
        "messages.1.tool_calls",
    ),
    "a user's call": (
        {"messages": [{"role": "user", "content": "a", "tool_calls": [{"id": WORD}]}]},
        "messages.0.tool_calls",
    ),
    "response_format": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": WORD}}},
        "response_format.json_schema.schema",
    ),
    "json_schema": ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    "two_formats": (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "structured_outputs",
    ),
    "format_and_more": (
        {"response_format": {"type": "json_object"}, "bad_words": [WORD]},
        "bad_words",
    ),
    "regex": ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
    "top_logprobs": ({"top_logprobs": 3}, "top_logprobs"),
    "too_many_logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "n": ({"n": 0}, "n"),
    "logit_bias": ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    "logit_bias of a word": ({"logit_bias": {WORD: 1}}, "logit_bias"),
    "logit_bias no number": ({"logit_bias": {"5": WORD}}, "logit_bias.5"),
    "a schema that is none": ({"structured_outputs": {"json": 7}}, "structured_outputs.json"),
}


def told(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    assert WORD not in response.text
    body: dict[str, Any] = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("name", INVALID)
async def test_the_field_that_is_wrong_is_named(
    http: httpx.AsyncClient, encoders: list[FakeEncoder], name: str
) -> None:
    fields, param = INVALID[name]

    for streamed in (False, True):
        response = await http.post(CHAT, json={"messages": HELLO, "stream": streamed} | fields)

        error = told(response)
        assert response.status_code == 400
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert error["message"].startswith(f"{param}: ")
    assert not any(encoder.calls for encoder in encoders)
    assert permits() == 0


async def test_a_prompt_too_long_has_the_code_that_clients_look_for(
    http: httpx.AsyncClient,
) -> None:
    messages = [{"role": "user", "content": "word " * 40_000}]

    error = told(await http.post(CHAT, json={"messages": messages}))

    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
async def test_another_model_is_not_found(http: httpx.AsyncClient, path: str) -> None:
    response = await http.post(path, json={"messages": HELLO, "model": WORD})

    assert response.status_code == 404
    assert told(response)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b'{"messages": [', 400, "malformed_json"),
        (b"", 400, "malformed_json"),
        (b'{"messages": "\\ud800"}', 400, "malformed_json"),
        (b'{"user": "\xff"}', 400, "malformed_json"),
        (b"[" * 60_000, 400, "malformed_json"),
        (b"[" * 100_000, 413, "body_too_large"),
        (b'["xylophone"]', 400, "malformed_body"),
        (b"[" + b"{}," * 1_000_000 + b"{}]", 413, "body_too_large"),
    ],
)
async def test_a_body_that_is_not_what_it_must_be(
    http: httpx.AsyncClient, content: bytes, status: int, code: str
) -> None:
    response = await http.post(
        CHAT, content=content, headers={"content-type": "application/json; charset=utf-8"}
    )

    assert (response.status_code, told(response)["code"]) == (status, code)


async def test_a_body_of_another_type_is_refused(http: httpx.AsyncClient) -> None:
    response = await http.post(
        CHAT, content=json.dumps({"messages": HELLO}), headers={"content-type": "text/plain"}
    )

    assert response.status_code == 415
    assert told(response)["code"] == "unsupported_media_type"


@pytest.mark.parametrize("is_told", [True, False])
async def test_a_body_is_read_up_to_a_limit(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    monkeypatch.setattr(body, "MAX_BODY_BYTES", 200_000)
    content = b" " * 300_000
    pieces = (content[i : i + 1000] for i in range(0, len(content), 1000))

    async def in_pieces() -> Any:
        for piece in pieces:
            yield piece

    response = await http.post(
        CHAT,
        content=content if is_told else in_pieces(),
        headers={"content-type": "application/json"},
    )

    assert response.status_code == 413
    assert told(response)["code"] == "body_too_large"
    assert (await http.post(CHAT, json={"messages": HELLO})).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/xylophone", 404, "not_found"),
        ("POST", "/v1/embeddings", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models/pixtral-small", 405, "method_not_allowed"),
        ("GET", "/v1/models/xylophone", 404, "model_not_found"),
    ],
)
async def test_routes_and_methods_that_are_not_there(
    http: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    response = await http.request(method, path)

    assert (response.status_code, told(response)["code"]) == (status, code)
    if status == 405:
        assert response.headers["allow"]


@pytest.mark.parametrize(
    ("error", "status", "kind", "retry_after"),
    [
        (Overloaded("full", retry_after=2.5), 429, "rate_limit_error", "3"),
        (Unavailable("gone"), 503, "server_error", "1"),
        (DeadlineExceeded(), 504, "server_error", None),
    ],
)
async def test_what_the_tiers_refuse_with_has_its_status(
    http: httpx.AsyncClient,
    decoders: list[FakeDecoder],
    error: ServingError,
    status: int,
    kind: str,
    retry_after: str | None,
) -> None:
    for decoder in decoders:
        decoder.behaviours = [refuses(error)]
    for streamed in (False, True):
        response = await http.post(CHAT, json={"messages": HELLO, "stream": streamed})

        assert response.status_code == status
        assert told(response)["type"] == kind
        assert response.headers.get("retry-after") == retry_after


async def test_beyond_the_permits_is_refused_at_once(
    http: httpx.AsyncClient, client: Client, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [never_ends]
    body = {"messages": HELLO, "stream": True}
    async with asyncio.TaskGroup() as group:
        held = [
            group.create_task(http.send(http.build_request("POST", CHAT, json=body), stream=True))
            for _ in range(client.settings.max_concurrent_requests or 0)
        ]
    response = await http.post(CHAT, json=body)

    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert told(response)["code"] == "rate_limit_exceeded"
    for task in held:
        await task.result().aclose()
    await eventually(lambda: permits() == 0)


async def test_an_error_midway_is_the_streams_last_event_but_done(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [breaks_midway(Unavailable("the engine has failed"))]

    *events, done = await stream(http, messages=LOOK, seed=7)

    *chunks, last = [json.loads(event) for event in events]
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "Hello"
    assert last["error"]["type"] == "server_error"
    assert last["error"]["code"] == "unavailable"
    assert permits() == 0


async def test_a_bug_says_nothing_but_that_it_is_one(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError(WORD)

    monkeypatch.setattr("pixtral_gateway.api.openai.app.check_sampling", fail)
    response = await http.post(CHAT, json={"messages": HELLO})

    assert response.status_code == 500
    assert told(response) == {
        "message": "internal error",
        "type": "server_error",
        "param": None,
        "code": "internal",
    }


async def test_the_time_that_a_request_may_take(
    http: httpx.AsyncClient, client: Client, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [never_begins]
    # The settings are frozen for everyone else.
    object.__setattr__(client.settings, "request_timeout_seconds", 0.3)

    response = await http.post(CHAT, json={"messages": HELLO})

    assert response.status_code == 504
    assert told(response)["code"] == "deadline_exceeded"
    await eventually(lambda: permits() == 0)
