"""Anthropic's Messages API over HTTP: what messages are made of, whole, and as events."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx2
import pytest

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2
from pixtral_core.concurrency.shared_limit import SharedLimit
from pixtral_core.errors import Unavailable
from pixtral_core.server.grpc_interceptor import Gate
from pixtral_core.telemetry.tracing import Tracer
from pixtral_gateway.api.openai.app import OpenAiApi
from pixtral_gateway.tenancy.tenants import Tenants, digest_of
from tests.support.fake_tiers import (
    TOOL_CALLS,
    FakeDecoder,
    Responses,
    breaks_midway,
    calls_a_tool,
    delta,
)
from tests.support.gateway_harness import Client, closed
from tests.support.http_chat import (
    ANTHROPIC_TOOL,
    CHAT,
    HELLO,
    IMAGE,
    LOOK,
    SHOWN_TO_ANTHROPIC,
    URL,
)
from tests.support.http_messages import MESSAGES, ask, stream
from tests.support.openapi import PATH, Described

COUNT = "/v1/messages/count_tokens"
DATA = URL.partition(",")[2]
USED = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "cat"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "a cat"}
CALL = {"id": "toolu_1", "function": {"name": "look", "arguments": '{"at": "cat"}'}}


async def prompt_of(
    http: httpx.AsyncClient, decoders: list[FakeDecoder], path: str, body: dict[str, Any]
) -> list[int]:
    """The tokens that a request has a decoder begin with."""
    for decoder in decoders:
        decoder.calls.clear()
    (await http.post(path, json=body)).raise_for_status()
    (call,) = (call for decoder in decoders for call in decoder.calls)
    return list(call.prompt_token_ids)


async def test_a_message_is_the_same_answer_in_another_form(http: httpx.AsyncClient) -> None:
    answer = await ask(http, SHOWN_TO_ANTHROPIC, system="Be brief.")
    same = (await http.post(CHAT, json={"messages": LOOK})).json()

    assert answer.pop("id").startswith("msg_")
    report = answer.pop("pixtral")
    assert answer == {
        "type": "message",
        "role": "assistant",
        "model": "pixtral-small",
        "content": [{"type": "text", "text": "Hello world"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": same["usage"]["prompt_tokens"] - 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 3,
            "output_tokens": 3,
        },
    }
    assert report["images"][0]["sha256"] == same["pixtral"]["images"][0]["sha256"]
    counted = await http.post(
        COUNT,
        json={"model": "pixtral-small", "messages": SHOWN_TO_ANTHROPIC, "system": "Be brief."},
    )
    assert counted.json() == {"input_tokens": same["usage"]["prompt_tokens"]}


@pytest.mark.parametrize(
    ("asked", "messages"),
    [
        ({"messages": HELLO}, HELLO),
        ({"messages": SHOWN_TO_ANTHROPIC, "system": "Be brief."}, LOOK),
        (
            {
                "system": [
                    {"type": "text", "text": "x-anthropic-billing-header: cch=1a2b;"},
                    {"type": "text", "text": "Be ", "cache_control": {"type": "ephemeral"}},
                    {"type": "text", "text": "brief."},
                ],
                "messages": SHOWN_TO_ANTHROPIC,
            },
            LOOK,
        ),
        ({"messages": [*SHOWN_TO_ANTHROPIC, {"role": "system", "content": "Be brief."}]}, LOOK),
        (
            {
                "messages": [
                    *HELLO,
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "So.", "signature": "a"},
                            {"type": "redacted_thinking", "data": "a"},
                            {"type": "text", "text": "Hi."},
                        ],
                    },
                    *HELLO,
                ]
            },
            [*HELLO, {"role": "assistant", "content": "Hi."}, *HELLO],
        ),
        (
            {
                "messages": [
                    *HELLO,
                    {"role": "assistant", "content": [USED]},
                    {"role": "user", "content": [RESULT]},
                ]
            },
            [
                *HELLO,
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "toolu_1", "content": "a cat"},
            ],
        ),
        (
            {
                "messages": [
                    *HELLO,
                    {"role": "assistant", "content": [USED, USED | {"id": "toolu_2"}]},
                    {
                        "role": "user",
                        "content": [
                            RESULT | {"content": [IMAGE, {"type": "text", "text": "seen"}]},
                            {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": True},
                            {"type": "text", "text": "Well?"},
                        ],
                    },
                ]
            },
            [
                *HELLO,
                {"role": "assistant", "tool_calls": [CALL, CALL | {"id": "toolu_2"}]},
                {"role": "tool", "tool_call_id": "toolu_1", "content": "seen"},
                {"role": "tool", "tool_call_id": "toolu_2", "content": ""},
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": URL},
                        {"type": "text", "text": "Well?"},
                    ],
                },
            ],
        ),
    ],
    ids=["text", "image", "system", "late system", "thinking", "call", "image in a result"],
)
async def test_blocks_make_the_prompt_of_their_messages(
    http: httpx.AsyncClient,
    decoders: list[FakeDecoder],
    asked: dict[str, Any],
    messages: list[Any],
) -> None:
    expected = await prompt_of(http, decoders, CHAT, {"messages": messages})
    assert await prompt_of(http, decoders, MESSAGES, {"max_tokens": 9} | asked) == expected
    counted = (await http.post(COUNT, json=asked)).json()
    assert counted == {"input_tokens": len(expected)}


async def test_events_come_in_their_order(http: httpx.AsyncClient) -> None:
    events = await stream(http, SHOWN_TO_ANTHROPIC)
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = events[0]["message"]
    assert start["content"] == []
    assert (start["stop_reason"], start["usage"]["cache_read_input_tokens"]) == (None, 3)
    assert [event["delta"]["text"] for event in events[2:4]] == ["Hello", " world"]
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 3
    assert events[-2]["usage"]["input_tokens"] == start["usage"]["input_tokens"]
    assert len(events[-2]["pixtral"]["images"]) == 1


async def says_and_calls(request: decoder_pb2.GenerateRequest) -> Responses:
    yield delta("Well.", 1001)
    async for response in calls_a_tool(request):
        yield response


async def test_a_call_is_a_block_of_its_own(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [says_and_calls]
    answer = await ask(http, HELLO, tools=[ANTHROPIC_TOOL])
    text, call = answer["content"]
    assert text == {"type": "text", "text": "Well."}
    assert (call["name"], call["input"]) == ("look", {"at": "cat"})
    assert answer["stop_reason"] == "tool_use"

    events = await stream(http, HELLO, tools=[ANTHROPIC_TOOL])
    pieces = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    of_call = [piece["partial_json"] for piece in pieces if "partial_json" in piece]
    assert json.loads("".join(of_call)) == {"at": "cat"}
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [event["index"] for event in starts] == [0, 1]
    assert starts[1]["content_block"]["input"] == {}
    # It can be sent back as it came.
    messages = [
        *HELLO,
        {"role": "assistant", "content": answer["content"][1:]},
        {"role": "user", "content": [RESULT | {"tool_use_id": call["id"]}]},
    ]
    await ask(http, messages, tools=[ANTHROPIC_TOOL])


@pytest.mark.parametrize(
    ("choice", "is_forced"),
    [
        ({"type": "auto", "disable_parallel_tool_use": True}, False),
        ({"type": "any"}, True),
        ({"type": "tool", "name": "look"}, True),
        ({"type": "none"}, False),
    ],
)
async def test_a_tool_choice(
    http: httpx.AsyncClient, decoders: list[FakeDecoder], choice: Any, is_forced: bool
) -> None:
    await ask(http, HELLO, tools=[ANTHROPIC_TOOL], tool_choice=choice)
    (call,) = (call for decoder in decoders for call in decoder.calls)
    assert (call.prompt_token_ids[-1] == TOOL_CALLS) is is_forced


async def test_sampling_and_structure_arrive_at_the_decoder(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    await ask(
        http,
        HELLO,
        max_tokens=9,
        temperature=0,
        top_p=0.5,
        top_k=3,
        stop_sequences=["x"],
        thinking={"type": "adaptive"},
        metadata={"user_id": "me"},
        output_config={
            "effort": "low",
            "format": {"type": "json_schema", "schema": {"type": "object"}},
        },
    )
    (call,) = (call for decoder in decoders for call in decoder.calls)
    assert call.sampling == chat_pb2.SamplingParams(
        max_tokens=9,
        temperature=0,
        top_p=0.5,
        top_k=3,
        stop=["x"],
        structured_output=chat_pb2.StructuredOutput(
            json_schema='{"type": "object"}', disable_any_whitespace=True
        ),
    )


async def stops_at_a_string(_: decoder_pb2.GenerateRequest) -> Responses:
    choice = chat_pb2.Choice(
        text="He", token_ids=[4], finish_reason=chat_pb2.FINISH_REASON_STOP, stop_string="llo"
    )
    yield decoder_pb2.GenerateResponse(delta=choice)


async def test_a_stop_string_is_told(http: httpx.AsyncClient, decoders: list[FakeDecoder]) -> None:
    for decoder in decoders:
        decoder.behaviours = [stops_at_a_string]
    answer = await ask(http, HELLO, stop_sequences=["llo"])
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "llo")
    *_, ending, _ = await stream(http, HELLO, stop_sequences=["llo"])
    assert ending["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "llo"}


async def test_an_answer_goes_on_from_an_assistants_last_message(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "It is"}]
    chat = {"messages": messages, "continue_final_message": True}
    expected = await prompt_of(http, decoders, CHAT, chat)
    assert await prompt_of(http, decoders, MESSAGES, {"messages": messages}) == expected


async def is_cut_within_a_call(_: decoder_pb2.GenerateRequest) -> Responses:
    yield delta("[TOOL_CALLS]", TOOL_CALLS)
    yield delta('[{"name": "look", "arguments": {"at": "c', 1001)
    yield delta("", finish=chat_pb2.FINISH_REASON_LENGTH)


async def says_nothing(_: decoder_pb2.GenerateRequest) -> Responses:
    yield delta("", 2, finish=chat_pb2.FINISH_REASON_STOP)


async def test_what_is_cut_or_empty_is_whole_all_the_same(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [is_cut_within_a_call]
    answer = await ask(http, HELLO, tools=[ANTHROPIC_TOOL])
    assert answer["stop_reason"] == "max_tokens"
    assert [block["input"] for block in answer["content"] if block["type"] == "tool_use"] == [{}]
    for decoder in decoders:
        decoder.behaviours = [says_nothing]
    assert (await ask(http, HELLO))["content"] == [{"type": "text", "text": ""}]
    kinds = [event["type"] for event in await stream(http, HELLO)]
    assert kinds[:3] == ["message_start", "content_block_start", "content_block_stop"]


async def test_a_stream_that_fails_ends_with_an_error(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        # A greedy answer would be continued.
        decoder.behaviours = [breaks_midway(Unavailable("gone"))]
    fields = {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}
    *_, last = await stream(http, HELLO, **fields)
    assert last["type"] == "error"
    assert last["error"]["type"] == "overloaded_error"


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    ([], {}, "messages"),
    ([{"role": "user", "content": 1}], {}, "messages.0.content"),
    ([{"role": "user", "content": ["a"]}], {}, "messages.0.content.0"),
    ([{"role": "tool", "content": "a"}], {}, "messages.0.role"),
    (
        [{"role": "user", "content": [{"type": "document"}]}],
        {},
        "messages.0.content.0.type",
    ),
    (
        [{"role": "user", "content": [IMAGE | {"source": {"type": "file"}}]}],
        {},
        "messages.0.content.0.source.type",
    ),
    (
        [
            {
                "role": "user",
                "content": [IMAGE | {"source": {"type": "base64", "data": "AAAA"}}],
            }
        ],
        {},
        "messages.0.content.0.source.data",
    ),
    ([*HELLO, {"role": "assistant", "content": [IMAGE]}], {}, "messages.1.content.0"),
    (
        [*HELLO, {"role": "assistant", "content": [USED | {"name": "a b"}]}],
        {},
        "messages.1.content.0.name",
    ),
    (
        [*HELLO, {"role": "assistant", "content": [USED]}],
        {},
        "messages.1.content.0",
    ),
    ([{"role": "user", "content": [RESULT]}], {}, "messages.0.content.0.role"),
    (HELLO, {"max_tokens": 0}, "max_tokens"),
    (HELLO, {"temperature": 3}, "temperature"),
    (HELLO, {"stop_sequences": [""]}, "stop_sequences.0"),
    (HELLO, {"system": [{"type": "image"}]}, "system.0.type"),
    (HELLO, {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type"),
    (HELLO, {"tools": [ANTHROPIC_TOOL | {"name": "a b"}]}, "tools.0.name"),
    (
        HELLO,
        {"tools": [ANTHROPIC_TOOL | {"input_schema": {"type": "array"}}]},
        "tools.0.input_schema",
    ),
    (HELLO, {"tools": [ANTHROPIC_TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    (HELLO, {"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
]


async def test_a_refusal_is_in_anthropics_form_and_names_its_field(http: httpx.AsyncClient) -> None:
    for messages, fields, at in REFUSED:
        response = await http.post(MESSAGES, json={"messages": messages} | fields)
        body = response.json()
        assert response.status_code == 400, (messages, fields, body)
        assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
        assert body["error"]["message"].partition(": ")[0] == at
        assert response.headers["request-id"] == response.headers["x-request-id"]


async def test_other_errors_are_in_its_form_too(http: httpx.AsyncClient) -> None:
    missing = await http.post(MESSAGES, json={"model": "claude", "messages": HELLO})
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
    other = await http.get(COUNT)
    assert (other.status_code, other.json()["error"]["type"]) == (405, "invalid_request_error")


async def test_the_key_comes_in_anthropics_header_or_in_openais(tmp_path: Path) -> None:
    keys = tmp_path / "tenants.toml"
    keys.write_text(f'[acme]\nkeys = ["{digest_of("key")}"]\n')
    gate = Gate("closed")
    app = OpenAiApi(closed(tmp_path, api_keys=keys), Tenants(keys), SharedLimit(1 << 20)).app(
        gate, Tracer()
    )
    gate.open()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(base_url="http://elsewhere", transport=transport) as http:

        async def status(**headers: str) -> int:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            # The tenant is found before the list of models, which no backend has here.
            try:
                return (await http.get("/v1/models", headers=named)).status_code
            except AttributeError:
                return 200

        assert await status() == 401
        assert await status(x_api_key="other") == 401
        assert await status(x_api_key="key") != 401
        assert await status(authorization="Bearer key") != 401
        assert await status(x_api_key="key", authorization="Bearer key") != 401
        assert await status(x_api_key="key", authorization="Bearer other") == 401
        refused = await http.post(MESSAGES, json={})
        assert refused.status_code == 401
        assert refused.json()["error"]["type"] == "authentication_error"


@pytest.fixture
async def client_of_anthropic(client: Client) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """Its requests are as /openapi.json says."""
    async with httpx.AsyncClient(base_url=client.url, trust_env=False) as http:
        described = Described((await http.get(PATH)).json())

    async def sent(request: httpx2.Request) -> None:
        path = request.url.path
        assert described.body_problem(path, json.loads(request.content)) is None

    http2 = httpx2.AsyncClient(trust_env=False, event_hooks={"request": [sent]})
    async with anthropic.AsyncAnthropic(
        base_url=client.url, api_key="any", max_retries=0, http_client=http2
    ) as made:
        yield made


async def test_anthropics_client_asks_streams_counts_and_sends_back(
    client_of_anthropic: anthropic.AsyncAnthropic, decoders: list[FakeDecoder]
) -> None:
    messages, tools = client_of_anthropic.messages, [ANTHROPIC_TOOL]
    shown: Any = SHOWN_TO_ANTHROPIC
    answer = await messages.create(model="pixtral-small", max_tokens=50, messages=shown)
    assert answer.content[0].type == "text"
    assert answer.content[0].text == "Hello world"
    assert answer._request_id
    async with messages.stream(
        model="pixtral-small", max_tokens=50, messages=shown, system="Be brief."
    ) as events:
        assert "".join([text async for text in events.text_stream]) == "Hello world"
        final = await events.get_final_message()
    assert final.usage.output_tokens == 3
    count = await messages.count_tokens(model="pixtral-small", messages=shown)
    assert count.input_tokens == answer.usage.input_tokens + 3

    for decoder in decoders:
        decoder.behaviours = [calls_a_tool]
    given: Any = tools
    async with messages.stream(
        model="pixtral-small", max_tokens=50, messages=shown, tools=given
    ) as events:
        final = await events.get_final_message()
    (used,) = final.content
    assert used.type == "tool_use"
    assert used.input == {"at": "cat"}
    result: Any = {"type": "tool_result", "tool_use_id": used.id, "content": "a cat"}
    again = await messages.create(
        model="pixtral-small",
        max_tokens=50,
        tools=given,
        messages=[
            *shown,
            {"role": "assistant", "content": final.content},
            {"role": "user", "content": [result]},
        ],
    )
    assert again.stop_reason == "tool_use"
    with pytest.raises(anthropic.NotFoundError, match="model"):
        await messages.create(model="claude", max_tokens=50, messages=shown)
