"""OpenAI's Responses over HTTP: what they are made of, whole, and as events."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import httpx2
import openai
import pydantic
import pytest

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2
from pixtral_core.errors import Unavailable
from tests.support.fake_tiers import (
    TOOL_CALLS,
    FakeDecoder,
    Responses,
    breaks_midway,
    calls_a_tool,
    delta,
)
from tests.support.gateway_harness import Client
from tests.support.http_chat import CHAT, HELLO, LOOK, RESPONSES_TOOL, SHOWN_TO_RESPONSES, URL
from tests.support.http_responses import RESPONSES, respond, stream
from tests.support.openapi import PATH, Described

CALLED = [
    {"role": "user", "content": "Look!"},
    {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_1", "output": "a cat"},
]


async def prompt_of(
    http: httpx.AsyncClient, decoders: list[FakeDecoder], path: str, body: dict[str, Any]
) -> list[int]:
    """The tokens that a request has a decoder begin with."""
    for decoder in decoders:
        decoder.calls.clear()
    (await http.post(path, json=body)).raise_for_status()
    (call,) = (call for decoder in decoders for call in decoder.calls)
    return list(call.prompt_token_ids)


async def test_a_response_is_the_same_answer_in_another_form(http: httpx.AsyncClient) -> None:
    answer = await respond(http, SHOWN_TO_RESPONSES, instructions="Be brief.", metadata={"a": "b"})
    same = (await http.post(CHAT, json={"messages": LOOK})).json()

    (item,) = answer["output"]
    assert item.pop("id").startswith("msg_")
    assert item == {
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [
            {"type": "output_text", "text": "Hello world", "annotations": [], "logprobs": []}
        ],
    }
    usage = same["usage"]
    assert answer["usage"] == {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": 3,
            "cache_write_tokens": 0,
            "image_tokens": usage["prompt_tokens_details"]["image_tokens"],
        },
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
    assert answer["id"].startswith("resp_")
    assert (answer["status"], answer["model"]) == ("completed", "pixtral-small")
    assert (answer["instructions"], answer["metadata"]) == ("Be brief.", {"a": "b"})
    assert answer["pixtral"]["images"][0]["sha256"] == same["pixtral"]["images"][0]["sha256"]


@pytest.mark.parametrize(
    ("given", "fields", "messages"),
    [
        ("Hello?", {}, HELLO),
        ("Hello?", {"instructions": "Be brief."}, [{"role": "system", "content": "Be brief."}]),
        ([{"role": "developer", "content": "Be brief."}, *SHOWN_TO_RESPONSES], {}, LOOK),
        (
            [
                {"type": "message", "role": "user", "content": "A"},
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None},
                {
                    "type": "message",
                    "id": "msg_1",
                    "status": "completed",
                    "role": "assistant",
                    "content": [
                        {"type": "output_text", "text": "B", "annotations": []},
                        {"type": "refusal", "refusal": "C"},
                    ],
                },
                {"role": "user", "content": [{"type": "input_text", "text": "D"}]},
            ],
            {},
            [
                {"role": "user", "content": "A"},
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "B"}, {"type": "text", "text": "C"}],
                },
                {"role": "user", "content": "D"},
            ],
        ),
        (
            [
                {"role": "user", "content": "A"},
                {"role": "assistant", "content": ""},
                *CALLED[1:],
            ],
            {},
            [
                {"role": "user", "content": "A"},
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "call_1", "function": {"name": "look", "arguments": "{}"}}
                    ],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "a cat"},
            ],
        ),
        (
            [
                {"role": "user", "content": "A"},
                CALLED[1],
                CALLED[1] | {"call_id": "call_2"},
                CALLED[2]
                | {
                    "call_id": "call_2",
                    "output": [
                        {"type": "input_image", "image_url": URL},
                        {"type": "input_text", "text": "seen"},
                    ],
                },
                CALLED[2],
            ],
            {},
            [
                {"role": "user", "content": "A"},
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": f"call_{i}", "function": {"name": "look", "arguments": "{}"}}
                        for i in (1, 2)
                    ],
                },
                {"role": "tool", "tool_call_id": "call_2", "content": "seen"},
                {"role": "tool", "tool_call_id": "call_1", "content": "a cat"},
                {"role": "user", "content": [{"type": "image_url", "image_url": URL}]},
            ],
        ),
        (
            "Hello?",
            {"tools": [{"type": "web_search"}, RESPONSES_TOOL]},
            HELLO,
        ),
    ],
    ids=["text", "instructions", "image", "answers", "call", "image in a result", "tools"],
)
async def test_input_items_make_the_prompt_of_their_messages(
    http: httpx.AsyncClient,
    decoders: list[FakeDecoder],
    given: Any,
    fields: dict[str, Any],
    messages: list[Any],
) -> None:
    chat: dict[str, Any] = {"messages": messages}
    if messages[-1]["role"] == "system":
        chat["messages"] = [*messages, *HELLO]
    if "tools" in fields:
        flat = {name: value for name, value in RESPONSES_TOOL.items() if name != "type"}
        chat["tools"] = [{"type": "function", "function": flat}]
    expected = await prompt_of(http, decoders, CHAT, chat)
    assert await prompt_of(http, decoders, RESPONSES, {"input": given} | fields) == expected


async def test_events_come_in_their_order_and_end_with_the_response(
    http: httpx.AsyncClient,
) -> None:
    events = await stream(http, SHOWN_TO_RESPONSES)
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["delta"] for event in events[4:6]] == ["Hello", " world"]
    assert events[6]["text"] == events[7]["part"]["text"] == "Hello world"
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1
    assert events[2]["item"]["content"] == []
    last = events[-1]["response"]
    assert last["output"] == [events[-2]["item"]]
    assert last["usage"]["output_tokens"] == 3
    assert {event["response"]["id"] for event in events if "response" in event} == {last["id"]}
    assert events[0]["response"]["status"] == "in_progress"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_call_is_an_item_with_its_own_events(
    http: httpx.AsyncClient, decoders: list[FakeDecoder], is_stream: bool
) -> None:
    for decoder in decoders:
        decoder.behaviours = [says_and_calls]
    if is_stream:
        events = await stream(http, "Look!", tools=[RESPONSES_TOOL])
        of_call = [event for event in events if "function_call" in event["type"]]
        assert "".join(event["delta"] for event in of_call[:-1]) == '{"at": "cat"}'
        assert of_call[-1]["arguments"] == '{"at": "cat"}'
        assert {event["output_index"] for event in of_call} == {1}
        kinds = [event["type"].rpartition(".")[0] for event in events if "item" in event]
        assert kinds == ["response.output_item"] * 4
        answer = events[-1]["response"]
    else:
        answer = await respond(http, "Look!", tools=[RESPONSES_TOOL])
    message, call = answer["output"]
    assert message["content"][0]["text"] == "Well."
    assert call.pop("id").startswith("fc_")
    assert call.pop("call_id")
    assert call == {
        "type": "function_call",
        "name": "look",
        "arguments": '{"at": "cat"}',
        "status": "completed",
    }
    assert answer["tools"] == [RESPONSES_TOOL]


async def says_and_calls(request: decoder_pb2.GenerateRequest) -> Responses:
    yield delta("Well.", 1001)
    async for response in calls_a_tool(request):
        yield response


@pytest.mark.parametrize(
    ("choice", "is_forced"),
    [
        ("required", True),
        ({"type": "function", "name": "look"}, True),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"name": "look"}]}, True),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"name": "look"}]}, False),
        ("none", False),
    ],
)
async def test_a_tool_choice(
    http: httpx.AsyncClient, decoders: list[FakeDecoder], choice: Any, is_forced: bool
) -> None:
    other = RESPONSES_TOOL | {"name": "rest"}
    tools = [{"type": "web_search_preview"}, other, RESPONSES_TOOL]
    await respond(http, "Hi", tools=tools, tool_choice=choice, parallel_tool_calls=False)
    (call,) = (call for decoder in decoders for call in decoder.calls)
    assert (call.prompt_token_ids[-1] == TOOL_CALLS) is is_forced
    if isinstance(choice, dict) and is_forced:
        schema = call.sampling.structured_output.json_schema
        assert '"look"' in schema
        assert '"rest"' not in schema or choice["type"] == "function"


async def test_an_answer_goes_on_from_a_message_that_is_not_complete(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    begun = {"role": "assistant", "content": "It is", "status": "incomplete"}
    messages = [*HELLO, {"role": "assistant", "content": "It is"}]
    chat = {"messages": messages, "continue_final_message": True}
    expected = await prompt_of(http, decoders, CHAT, chat)
    assert await prompt_of(http, decoders, RESPONSES, {"input": [*HELLO, begun]}) == expected
    assert (await respond(http, "Hi", request_id="resp_own"))["id"] == "resp_own"


async def is_cut(_: decoder_pb2.GenerateRequest) -> Responses:
    yield delta("Hel", 1001)
    yield delta("", finish=chat_pb2.FINISH_REASON_LENGTH)


async def test_an_answer_that_is_cut_is_incomplete(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [is_cut]
    answer = await respond(http, "Hi", max_output_tokens=1)
    assert (answer["status"], answer["output"][0]["status"]) == ("incomplete", "incomplete")
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    events = await stream(http, "Hi", max_output_tokens=1)
    assert events[-1]["type"] == "response.incomplete"
    assert all(call.sampling.max_tokens == 1 for decoder in decoders for call in decoder.calls)


async def says_nothing(_: decoder_pb2.GenerateRequest) -> Responses:
    yield delta("", 2, finish=chat_pb2.FINISH_REASON_STOP)


async def test_an_empty_answer_is_a_message_without_text(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [says_nothing]
    answer = await respond(http, "Hi")
    assert [part["text"] for part in answer["output"][0]["content"]] == [""]
    kinds = [event["type"] for event in await stream(http, "Hi")]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-1] == "response.completed"


async def test_sampling_and_structure_arrive_at_the_decoder(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    schema = {"type": "object"}
    text = {"format": {"type": "json_schema", "name": "x", "strict": True, "schema": schema}}
    answer = await respond(
        http,
        "Hi",
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.5,
        top_k=3,
        text=text,
        include=["message.output_text.logprobs", "reasoning.encrypted_content"],
        top_logprobs=2,
        store=True,
        truncation="disabled",
        reasoning={"effort": "low"},
        stream_options={"include_obfuscation": False},
    )
    (call,) = (call for decoder in decoders for call in decoder.calls)
    assert call.sampling == chat_pb2.SamplingParams(
        max_tokens=9,
        temperature=0.5,
        top_p=0.5,
        top_k=3,
        logprobs=2,
        structured_output=chat_pb2.StructuredOutput(
            json_schema='{"type": "object"}', disable_any_whitespace=True
        ),
    )
    assert answer["text"]["format"]["schema"] == schema
    assert (answer["store"], answer["temperature"], answer["max_output_tokens"]) == (False, 0.5, 9)


async def has_logprobs(_: decoder_pb2.GenerateRequest) -> Responses:
    chosen = chat_pb2.Logprob(token_id=4, text="é", logprob=-0.5)
    told = chat_pb2.TokenLogprobs(chosen=chosen)
    yield decoder_pb2.GenerateResponse(
        delta=chat_pb2.Choice(
            text="é",
            token_ids=[4],
            logprobs=[told],
            finish_reason=chat_pb2.FINISH_REASON_STOP,
        )
    )


async def test_logprobs_are_of_the_text(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [has_logprobs]
    expected = [{"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": []}]
    fields = {"include": ["message.output_text.logprobs"]}
    answer = await respond(http, "Hi", **fields)
    assert answer["output"][0]["content"][0]["logprobs"] == expected
    events = await stream(http, "Hi", **fields)
    assert [event["logprobs"] for event in events if "logprobs" in event] == [expected] * 2


async def test_a_stream_that_fails_ends_with_the_failed_response(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [breaks_midway(Unavailable("gone"))]
    *_, last = await stream(http, "Hi", seed=5)
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"


async def test_an_answer_can_be_sent_back_as_it_came(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [calls_a_tool]
    first = await respond(http, "Look!", tools=[RESPONSES_TOOL])
    (call,) = first["output"]
    given = [
        {"role": "user", "content": "Look!"},
        call,
        {"type": "function_call_output", "call_id": call["call_id"], "output": "a cat"},
    ]
    await respond(http, given, tools=[RESPONSES_TOOL])


IMAGE = {"type": "input_image", "image_url": URL}


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (None, {}, "input"),
    ([], {}, "input"),
    (["a"], {}, "input.0"),
    ([{"type": "computer_call"}], {}, "input.0.type"),
    ([{"type": "item_reference", "id": "msg_1"}], {}, "input.0.type"),
    ([{"content": "a"}], {}, "input.0.role"),
    ([{"role": "tool", "content": "a"}], {}, "input.0.role"),
    ([{"role": "user", "content": 1}], {}, "input.0.content"),
    ([{"role": "user", "content": [{"type": "input_file"}]}], {}, "input.0.content.0.type"),
    (
        [{"role": "user", "content": [{"type": "input_image", "file_id": "a"}]}],
        {},
        "input.0.content.0.image_url",
    ),
    (
        [{"role": "user", "content": [IMAGE | {"detail": "fine"}]}],
        {},
        "input.0.content.0.detail",
    ),
    ([{"role": "system", "content": [IMAGE]}], {}, "input.0.content.0"),
    (
        [{"role": "user", "content": [IMAGE | {"image_url": "data:image/png;base64,AAAA"}]}],
        {},
        "input.0.content.0.image_url",
    ),
    (CALLED[:2], {}, "input.1"),
    ([*CALLED[:1], CALLED[1] | {"name": "a b"}], {}, "input.1.name"),
    ([*CALLED[:1], CALLED[1] | {"call_id": None}], {}, "input.1.call_id"),
    ([CALLED[0], CALLED[2]], {}, "input.1.role"),
    ("a", {"previous_response_id": "resp_1"}, "previous_response_id"),
    ("a", {"background": True}, "background"),
    ("a", {"conversation": "conv_1"}, "conversation"),
    ("a", {"prompt": {"id": "pmpt_1"}}, "prompt"),
    ("a", {"truncation": "auto"}, "truncation"),
    ("a", {"max_output_tokens": 0}, "max_output_tokens"),
    ("a", {"top_logprobs": 3}, "top_logprobs"),
    ("a", {"temperature": 3}, "temperature"),
    ("a", {"tools": [{"type": "custom", "name": "a"}]}, "tools.0.type"),
    ("a", {"tools": [{"type": "web_search"}, RESPONSES_TOOL | {"name": "a b"}]}, "tools.1.name"),
    ("a", {"tools": [RESPONSES_TOOL | {"parameters": {"type": "array"}}]}, "tools.0.parameters"),
    ("a", {"tools": [RESPONSES_TOOL], "tool_choice": "perhaps"}, "tool_choice"),
    (
        "a",
        {"tools": [RESPONSES_TOOL], "tool_choice": {"type": "function", "name": "x"}},
        "tool_choice.name",
    ),
    ("a", {"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    (
        "a",
        {"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}},
        "structured_outputs",
    ),
    ("a", {"text": {"format": {"type": "json_object"}}, "min_tokens": 2}, "min_tokens"),
]


async def test_a_refusal_names_its_field(http: httpx.AsyncClient) -> None:
    for given, fields, param in REFUSED:
        response = await http.post(RESPONSES, json={"input": given} | fields)
        found = response.json()["error"]["param"]
        assert (response.status_code, found) == (400, param), (given, fields, response.text)


async def test_no_more_images_than_may_be(http: httpx.AsyncClient) -> None:
    given = [{"role": "user", "content": [IMAGE] * 4}]
    response = await http.post(RESPONSES, json={"input": given})
    assert response.json()["error"]["code"] == "too_many_images"


@pytest.fixture
async def client_of_openai(client: Client) -> AsyncIterator[openai.AsyncOpenAI]:
    """Its requests are as /openapi.json says."""
    async with httpx.AsyncClient(base_url=client.url, trust_env=False) as http:
        described = Described((await http.get(PATH)).json())

    async def sent(request: httpx2.Request) -> None:
        assert described.body_problem(RESPONSES, json.loads(request.content)) is None

    http2 = httpx2.AsyncClient(trust_env=False, event_hooks={"request": [sent]})
    async with openai.AsyncOpenAI(
        base_url=f"{client.url}/v1", api_key="any", max_retries=0, http_client=http2
    ) as made:
        yield made


async def says_a_cat(_: decoder_pb2.GenerateRequest) -> Responses:
    yield delta('{"at": "cat"}', 1001, finish=chat_pb2.FINISH_REASON_STOP)


class At(pydantic.BaseModel):
    at: str


async def test_openais_client_creates_parses_and_streams(
    client_of_openai: openai.AsyncOpenAI, decoders: list[FakeDecoder]
) -> None:
    shown: Any = SHOWN_TO_RESPONSES
    tools: Any = [RESPONSES_TOOL]
    answer = await client_of_openai.responses.create(model="pixtral-small", input=shown)
    assert answer.output_text == "Hello world"
    given = [*shown, *answer.output, {"role": "user", "content": "Go on."}]
    again = await client_of_openai.responses.create(model="pixtral-small", input=given, store=False)
    assert again.output_text == "Hello world"

    async with client_of_openai.responses.stream(model="pixtral-small", input=shown) as events:
        texts = [
            event.delta async for event in events if event.type == "response.output_text.delta"
        ]
        final = await events.get_final_response()
    assert "".join(texts) == final.output_text == "Hello world"

    for decoder in decoders:
        decoder.behaviours = [says_a_cat]
    parsed = await client_of_openai.responses.parse(
        model="pixtral-small", input=shown, text_format=At
    )
    assert parsed.output_parsed == At(at="cat")
    for decoder in decoders:
        decoder.behaviours = [calls_a_tool]
    async with client_of_openai.responses.stream(
        model="pixtral-small", input="Look!", tools=tools
    ) as events:
        final = await events.get_final_response()
    (call,) = final.output
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"at": "cat"}
