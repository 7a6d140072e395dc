"""Tools, calls and results through both clients."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from pixtral.v1 import chat_pb2
from pixtral_client import AsyncClient, Client, ToolCall
from pixtral_client.tools import to_call, tool_fields
from tests.support.fake_gateway import FakeGateway, serving

HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}}
LOOK: dict[str, Any] = {"name": "look", "description": "Looks.", "parameters": SCHEMA}
TOOLS: list[Any] = [{"type": "function", "function": LOOK}, {"name": "go"}]
SENT = [
    chat_pb2.Tool(name="look", description="Looks.", parameters=json.dumps(SCHEMA)),
    chat_pb2.Tool(name="go"),
]
CALLS = (
    ToolCall("a12345678", "look", '{"at": "cat"}'),
    ToolCall("b12345678", "go", "{}", index=1),
)
REQUIRED = chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_REQUIRED)


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()
    fake.calls = [
        chat_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments, index=call.index)
        for call in CALLS
    ]
    with serving(fake) as address:
        fake.address = address
        yield fake


@pytest.fixture
def client(gateway: FakeGateway) -> Iterator[Client]:
    with Client(gateway.address, timeout=60) as client:
        yield client


@pytest.fixture
async def async_client(gateway: FakeGateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(gateway.address, timeout=60) as client:
        yield client


def test_tools_are_offered_and_called(client: Client, gateway: FakeGateway) -> None:
    answer = client.chat(
        HELLO, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=5
    )
    assert answer.tool_calls == answer.choices[0].tool_calls == CALLS
    assert (answer.text, answer.finish_reason) == ("", "tool_calls")
    (request,) = gateway.requests
    assert list(request.chat.tools) == SENT
    assert request.chat.tool_choice == REQUIRED
    assert request.chat.HasField("parallel_tool_calls")
    assert not request.chat.parallel_tool_calls
    assert request.chat.sampling == chat_pb2.SamplingParams(max_tokens=5)


def test_calls_are_streamed(client: Client, gateway: FakeGateway) -> None:
    with client.stream(HELLO, tools=TOOLS) as stream:
        deltas = list(stream)
    assert stream.completion is not None
    assert stream.completion.tool_calls == CALLS
    assert [call.name for delta in deltas for call in delta.tool_calls] == ["look", "", "go", ""]
    assert deltas[-1].finish_reason == "tool_calls"
    (request,) = gateway.requests
    assert list(request.chat.tools) == SENT
    assert not request.chat.HasField("tool_choice")
    assert not request.chat.HasField("parallel_tool_calls")


async def test_both_with_asyncio(async_client: AsyncClient, gateway: FakeGateway) -> None:
    answer = await async_client.chat(HELLO, tools=TOOLS, tool_choice={"name": "look"})
    stream = await async_client.stream(HELLO, tools=TOOLS)
    async for _ in stream:
        pass
    assert stream.completion is not None
    assert answer.tool_calls == stream.completion.tool_calls == CALLS
    await async_client.count_tokens(HELLO, tools=TOOLS, tool_choice="none")
    chosen, _, counted = gateway.requests
    assert chosen.chat.tool_choice == chat_pb2.ToolChoice(name="look")
    assert list(counted.chat.tools) == SENT
    assert counted.chat.tool_choice == chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_NONE)


@pytest.mark.parametrize("form", ["of an answer", "of OpenAI", "arguments as a dict"])
def test_calls_go_back_with_their_results(client: Client, gateway: FakeGateway, form: str) -> None:
    answer = client.chat(HELLO, tools=TOOLS)
    called: list[Any] = list(answer.tool_calls)
    if form != "of an answer":
        called = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in called
        ]
    if form == "arguments as a dict":
        called[0]["function"]["arguments"] = {"at": "cat"}
    messages: list[Any] = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": called},
        {"role": "tool", "tool_call_id": CALLS[0].id, "content": "A cat."},
        {"role": "tool", "tool_call_id": CALLS[1].id, "content": ""},
    ]
    client.count_tokens(messages)
    _, asked, first, second = gateway.requests[-1].chat.messages
    assert (asked.role, list(asked.content)) == (chat_pb2.ROLE_ASSISTANT, [])
    assert [(c.id, c.name, c.arguments) for c in asked.tool_calls] == [
        (c.id, c.name, c.arguments) for c in CALLS
    ]
    assert (first.role, first.tool_call_id) == (chat_pb2.ROLE_TOOL, CALLS[0].id)
    assert [part.text for part in first.content] == ["A cat."]
    assert list(second.content) == []


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"tools": ["look"]}, TypeError, r"tools\[0\] must be a dict"),
        ({"tools": [{"function": "look"}]}, TypeError, r"tools\[0\] must be a dict"),
        ({"tools": [{"name": "a"}, {}]}, TypeError, r"tools\[1\].name must be a string"),
        ({"tool_choice": "look"}, ValueError, "tool_choice must be one of auto, none, required"),
        ({"tool_choice": {"function": {}}}, TypeError, "tool_choice.name must be a string"),
    ],
)
def test_what_no_tool_is_made_of_is_named(
    options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        tool_fields(options)


def test_a_call_without_arguments_has_none() -> None:
    call = to_call({"id": "a", "function": {"name": "go"}}, "here")
    assert call == chat_pb2.ToolCall(id="a", name="go")
