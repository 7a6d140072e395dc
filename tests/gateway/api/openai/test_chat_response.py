"""The parts of answers beside their text, and the forms that a client can ask for."""

import json
from typing import Any

import httpx
import pytest

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2
from tests.support.fake_tiers import TOOL_CALLS, FakeDecoder, Responses, calls_a_tool, delta
from tests.support.gateway_harness import Client
from tests.support.gateway_pictures import text, user
from tests.support.http_chat import CHAT, HELLO, ask, stream

BEGUN = [*HELLO, {"role": "assistant", "content": "There are"}]
LOOK = [{"type": "function", "function": {"name": "look"}}]


def chunks_of(events: list[str]) -> list[dict[str, Any]]:
    *chunks, done = events
    assert done == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


async def stops_at_a_string(_: decoder_pb2.GenerateRequest) -> Responses:
    last = delta("Hel", 1001, finish=chat_pb2.FINISH_REASON_STOP)
    last.delta.stop_string = "lo"
    yield last


async def stops_at_a_token(_: decoder_pb2.GenerateRequest) -> Responses:
    last = delta("Hello", 1001, 0, finish=chat_pb2.FINISH_REASON_STOP)
    # Zero is a token, too.
    last.delta.stop_token_id = 0
    yield last


async def tells_of_a_token(_: decoder_pb2.GenerateRequest) -> Responses:
    told = [
        chat_pb2.Logprob(token_id=token_id, text=text, logprob=-1, rank=rank)
        for token_id, text, rank in ((7, "é", 2), (8, "b", 1))
    ]
    last = delta("é", 7, finish=chat_pb2.FINISH_REASON_STOP)
    last.delta.logprobs.append(chat_pb2.TokenLogprobs(chosen=told[0], top=told[1:]))
    yield last


async def is_cut_in_a_call(request: decoder_pb2.GenerateRequest) -> Responses:
    if request.prompt_token_ids[-1] != TOOL_CALLS:
        yield delta("[TOOL_CALLS]", TOOL_CALLS)
    yield delta('[{"name": "look", "arguments": {}}', 1001)
    yield delta(', {"name": "lo', 1001, finish=chat_pb2.FINISH_REASON_LENGTH)


@pytest.mark.parametrize(
    ("behaviour", "reason"), [(stops_at_a_string, "lo"), (stops_at_a_token, 0), (None, None)]
)
async def test_an_answer_says_what_ended_it(
    http: httpx.AsyncClient,
    client: Client,
    decoders: list[FakeDecoder],
    behaviour: Any,
    reason: str | int | None,
) -> None:
    for decoder in decoders:
        decoder.behaviours = [behaviour] if behaviour else decoder.behaviours
    (whole,) = (await ask(http))["choices"]
    chunks = chunks_of(await stream(http))
    chat = chat_pb2.Chat(messages=[user(text("Hello?"))])
    over_grpc = await client.stub.Complete(chat_pb2.CompleteRequest(chat=chat))

    assert whole["finish_reason"] == "stop"
    assert whole["stop_reason"] == reason
    assert [chunk["choices"][0]["stop_reason"] for chunk in chunks][-1] == reason
    assert not any(chunk["choices"][0]["stop_reason"] for chunk in chunks[:-1])
    (choice,) = over_grpc.choices
    named = choice.WhichOneof("stop_reason")
    assert (getattr(choice, named) if named else None) == reason


async def test_token_ids_are_told_where_they_are_asked_for(http: httpx.AsyncClient) -> None:
    asked = {"return_token_ids": True}
    tokens = (await http.post("/tokenize", json={"messages": HELLO})).json()["tokens"]
    whole = await ask(http, **asked)
    first, *rest = chunks_of(await stream(http, **asked))

    assert whole["prompt_token_ids"] == first["prompt_token_ids"] == tokens
    assert whole["choices"][0]["token_ids"] == [1001, 1002, 1003]
    assert [each["choices"][0]["token_ids"] for each in rest] == [[1001], [1002, 1003]]
    assert not any("prompt_token_ids" in each for each in rest)
    plain = await ask(http)
    assert "prompt_token_ids" not in plain
    assert "token_ids" not in plain["choices"][0]


@pytest.mark.parametrize("as_ids", [False, True])
async def test_a_token_is_named_by_its_id_where_that_is_asked_for(
    http: httpx.AsyncClient, decoders: list[FakeDecoder], as_ids: bool
) -> None:
    for decoder in decoders:
        decoder.behaviours = [tells_of_a_token]
    asked = {"logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": as_ids}
    whole = await ask(http, **asked)
    chunks = chunks_of(await stream(http, **asked))
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    for told in (whole["choices"][0]["logprobs"], *filter(None, streamed)):
        (token,) = told["content"]
        (likelier,) = token["top_logprobs"]
        names = ["token_id:7", "token_id:8"] if as_ids else ["é", "b"]
        assert [token["token"], likelier["token"]] == names
        assert [token["bytes"], likelier["bytes"]] == [list("é".encode()), [98]]
    assert any(streamed)


@pytest.mark.parametrize(
    ("fields", "beginning"),
    [
        ({"messages": BEGUN, "continue_final_message": True}, ""),
        (
            {
                "messages": BEGUN,
                "continue_final_message": True,
                "add_generation_prompt": False,
                "echo": True,
            },
            "There are",
        ),
        ({"messages": [*HELLO, {**BEGUN[1], "prefix": True}]}, "There are"),
        (
            {
                "messages": [
                    *HELLO,
                    {
                        "role": "assistant",
                        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                        "prefix": True,
                    },
                ]
            },
            "a\n\nb",
        ),
        ({"messages": HELLO, "echo": True, "add_generation_prompt": False}, ""),
    ],
)
async def test_an_answer_goes_on_from_its_beginning(
    http: httpx.AsyncClient, decoders: list[FakeDecoder], fields: dict[str, Any], beginning: str
) -> None:
    """As with vLLM, the answer repeats the beginning for `echo` alone; as with Mistral, for
    `prefix`."""
    whole = await ask(http, **fields)
    chunks = chunks_of(await stream(http, **fields))
    tokens = (await http.post("/tokenize", json=fields)).json()["tokens"]

    assert whole["choices"][0]["message"]["content"] == f"{beginning}Hello world"
    said = [chunk["choices"][0]["delta"]["content"] for chunk in chunks]
    assert said == ["", *([beginning] if beginning else []), "Hello", " world"]
    for call in (call for decoder in decoders for call in decoder.calls):
        assert list(call.prompt_token_ids) == tokens
        assert (call.prompt_token_ids[-1] == 4) is (fields["messages"] == HELLO)


async def test_over_grpc_an_answer_goes_on_from_its_beginning(
    http: httpx.AsyncClient, client: Client, decoders: list[FakeDecoder]
) -> None:
    begun = {"messages": BEGUN, "continue_final_message": True}
    tokens = (await http.post("/tokenize", json=begun)).json()["tokens"]
    messages = [
        user(text("Hello?")),
        chat_pb2.Message(role=chat_pb2.ROLE_ASSISTANT, content=[text("There are")]),
    ]
    chat = chat_pb2.Chat(messages=messages, continue_final_message=True)
    answer = await client.stub.Complete(chat_pb2.CompleteRequest(chat=chat))
    counted = await client.stub.CountTokens(chat_pb2.CountTokensRequest(chat=chat))

    (call,) = (call for decoder in decoders for call in decoder.calls)
    assert list(call.prompt_token_ids) == tokens
    assert counted.prompt_tokens == len(tokens)
    assert answer.choices[0].text == "Hello world"


async def test_usage_ends_a_stream_where_nothing_is_said_of_it(http: httpx.AsyncClient) -> None:
    """In the last chunk with a choice: Mistral's clients read no chunk without one."""
    whole = await ask(http)
    *chunks, last = chunks_of(await stream(http))

    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["usage"] == whole["usage"]
    assert "timings" in last["pixtral"]
    assert not any("usage" in chunk for chunk in chunks)
    for options in ({}, {"include_usage": False}):
        refused = chunks_of(await stream(http, stream_options=options))
        assert not any("usage" in chunk for chunk in refused)


@pytest.mark.parametrize("more_settings", [{"force_include_usage": True}])
async def test_usage_can_be_sent_always(http: httpx.AsyncClient) -> None:
    for fields in ({}, {"stream_options": {"include_usage": False}}):
        *chunks, last = chunks_of(await stream(http, **fields))
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 3
        assert all(chunk["usage"] is None for chunk in chunks)


async def test_the_rest_of_a_call_that_is_cut_is_no_text(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [is_cut_in_a_call]
    for choice in ("auto", "required"):
        fields = {"tools": LOOK, "tool_choice": choice}
        (whole,) = (await ask(http, **fields))["choices"]
        chunks = chunks_of(await stream(http, **fields))

        assert whole["message"]["content"] is None
        assert [call["function"]["name"] for call in whole["message"]["tool_calls"]] == ["look"]
        assert whole["finish_reason"] == "length"
        assert not any(chunk["choices"][0]["delta"].get("content") for chunk in chunks)
        # While the head of a call is read, there is nothing to send.
        assert all(
            chunk["choices"][0]["delta"].keys() - {"content"}
            or chunk["choices"][0]["finish_reason"]
            for chunk in chunks
        )


async def test_an_answer_goes_by_the_requests_own_id(http: httpx.AsyncClient) -> None:
    assert (await ask(http, request_id="mine"))["id"] == "chatcmpl-mine"
    assert {chunk["id"] for chunk in chunks_of(await stream(http, request_id="mine"))} == {
        "chatcmpl-mine"
    }


async def test_more_tokens_than_the_context_has_left_are_cut(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    usage = (await ask(http, max_tokens=2**31 - 1))["usage"]
    (call,) = (call for decoder in decoders for call in decoder.calls)
    assert call.sampling.max_tokens == 32_768 - usage["prompt_tokens"]


async def test_the_form_of_the_text_arrives_at_the_decoder(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    given: dict[str, Any] = {"include_stop_str_in_output": True}
    await ask(http, **given)
    (call,) = (call for decoder in decoders for call in decoder.calls)
    assert call.sampling == chat_pb2.SamplingParams(**given)


async def test_a_client_can_send_back_whatever_it_got(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    async def says_and_calls(request: decoder_pb2.GenerateRequest) -> Responses:
        yield delta("Let me look.", 1001)
        async for response in calls_a_tool(request):
            yield response

    async def says_nothing(_: decoder_pb2.GenerateRequest) -> Responses:
        yield delta("", 2, finish=chat_pb2.FINISH_REASON_STOP)

    for behaviour in (says_and_calls, says_nothing):
        for decoder in decoders:
            decoder.behaviours = [behaviour]
        message = (await ask(http, tools=LOOK))["choices"][0]["message"]
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": "a cat"}
            for call in message.get("tool_calls", ())
        ]
        for decoder in decoders:
            decoder.behaviours = [says_nothing]
        await ask(http, tools=LOOK, messages=[*HELLO, message, *results, *HELLO])


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
async def test_the_models_own_template_may_begin_anyhow(http: httpx.AsyncClient, path: str) -> None:
    """The messages of frameworks: see `tests/gateway/prompt/test_message_lists.py` for all of
    it."""
    rule = {"role": "system", "content": "Be brief."}
    for messages in ([rule, rule, *HELLO], [*HELLO, *HELLO], [BEGUN[1], *HELLO], [*HELLO, rule]):
        response = await http.post(path, json={"messages": messages})
        assert response.status_code == 200, response.text
