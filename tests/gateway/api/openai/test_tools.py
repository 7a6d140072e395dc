"""Tools over HTTP: offered, called and answered in OpenAI's form."""

import json
import re
from typing import Any

import httpx
import pytest

from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from tests.support.fake_tiers import FakeDecoder, calls_a_tool
from tests.support.http_chat import HELLO, ask, stream

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Looks.",
            "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
            "strict": True,
        },
    }
]


@pytest.fixture
def calling(decoders: list[FakeDecoder]) -> list[FakeDecoder]:
    for decoder in decoders:
        decoder.behaviours = [calls_a_tool]
    return decoders


NAMED = {"type": "function", "function": {"name": "look"}}


@pytest.mark.parametrize("choice", [None, "auto", "required", "any", NAMED], ids=str)
async def test_a_call_is_told_in_openais_form(
    http: httpx.AsyncClient, calling: list[FakeDecoder], choice: Any
) -> None:
    answer = await ask(http, tools=TOOLS, tool_choice=choice)

    (told,) = answer["choices"]
    (call,) = told["message"].pop("tool_calls")
    assert re.fullmatch("[a-zA-Z0-9]{9}", call.pop("id"))
    assert call == {
        "type": "function",
        "function": {"name": "look", "arguments": '{"at": "cat"}'},
    }
    assert told["message"] == {"role": "assistant", "content": None, "refusal": None}
    assert told["finish_reason"] == "tool_calls"


async def test_a_call_is_streamed_in_openais_form(
    http: httpx.AsyncClient, calling: list[FakeDecoder]
) -> None:
    *events, done = await stream(http, tools=TOOLS)

    choices = [json.loads(event)["choices"][0] for event in events]
    assert done == "[DONE]"
    told = [each["delta"]["tool_calls"] for each in choices if "tool_calls" in each["delta"]]
    (first,), *rest = told
    assert re.fullmatch("[a-zA-Z0-9]{9}", first.pop("id"))
    assert first == {
        "index": 0,
        "type": "function",
        "function": {"name": "look", "arguments": '{"at"'},
    }
    assert rest == [[{"index": 0, "function": {"name": "", "arguments": ': "cat"}'}}]]
    assert not any(each["delta"].get("content") for each in choices)
    assert [each["finish_reason"] for each in choices[-2:]] == [None, "tool_calls"]


async def test_no_call_is_told_where_none_is_wanted(
    http: httpx.AsyncClient, calling: list[FakeDecoder]
) -> None:
    answer = await ask(http, tools=TOOLS, tool_choice="none")
    plain = await ask(http)

    assert answer["choices"] == plain["choices"]
    assert answer["usage"] == plain["usage"]
    assert "tool_calls" not in answer["choices"][0]["message"]


@pytest.mark.parametrize("content", [None, "", [], "a cat", [{"type": "text", "text": "a cat"}]])
@pytest.mark.parametrize("arguments", ['{"at": "cat"}', {"at": "cat"}], ids=str)
async def test_a_call_goes_back_with_its_result(
    http: httpx.AsyncClient, content: Any, arguments: Any
) -> None:
    function = {"name": "look", "arguments": arguments}
    call = {"id": "call_1", "type": "function", "function": function, "index": 0}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "name": "look", "content": content},
    ]
    asked = await ask(http, tools=TOOLS)
    answered = await ask(http, messages=messages, tools=TOOLS)
    tokens = await http.post("/tokenize", json={"messages": messages, "tools": TOOLS})

    assert answered["usage"]["prompt_tokens"] > asked["usage"]["prompt_tokens"] + 10
    assert tokens.json()["count"] == answered["usage"]["prompt_tokens"]


async def test_a_tools_order_of_keys_and_all_it_says_reach_the_prompt(
    http: httpx.AsyncClient, calling: list[FakeDecoder], prompts: PromptEncoder
) -> None:
    await ask(http, tools=TOOLS)
    (call,) = [call for decoder in calling for call in decoder.calls]
    offered = json.dumps(
        [
            {
                "type": "function",
                "function": {
                    "name": "look",
                    "description": "Looks.",
                    "parameters": TOOLS[0]["function"]["parameters"],
                },
            }
        ]
    )
    spelled = list(await prompts.tokenize(offered, bos=False))
    ids = list(call.prompt_token_ids)
    assert ids[: len(spelled) + 3] == [1, 5, *spelled, 6]
