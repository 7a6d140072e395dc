"""LangChain's ChatOpenAI, unmodified, against the running service."""

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from tests.support.fixture_types import Tokenizer
from tests.support.stack.new_picture import new_picture
from tests.support.stack.openai_question import MODEL, question, url_of
from tests.support.stack.service import Service


@tool
def look(at: Literal["cat", "dog"]) -> str:
    """Looks at an animal of the picture."""
    return f"The {at} is asleep."


@tool
def rest() -> str:
    """Does nothing."""
    return "Rested."


class Animal(BaseModel):
    """What is to be seen."""

    kind: Literal["cat", "dog"]
    mood: Literal["awake", "asleep"]


@pytest.fixture(scope="module")
def model(service: Service) -> Iterator[ChatOpenAI]:
    # What tests set in the environment is not asked: no traces, no proxy.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LANGSMITH_TRACING", "false")
        yield chat(service)


def chat(service: Service, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL,
        base_url=f"http://{service.stack.http_target}/v1",
        api_key=SecretStr("any"),
        temperature=0,
        max_retries=0,
        timeout=60,
        **options,
    )


def shown() -> HumanMessage:
    return HumanMessage(
        [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": url_of(new_picture())}},
        ]
    )


def test_an_answer_and_its_usage(service: Service, model: ChatOpenAI) -> None:
    messages = question(new_picture())
    ours = service.client.chat(messages, max_tokens=8, temperature=0)
    answer = model.invoke(messages, max_tokens=8)
    assert answer.content == ours.text
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] == ours.usage.prompt_tokens
    assert answer.response_metadata["finish_reason"] == ours.finish_reason


def test_a_stream(service: Service, model: ChatOpenAI) -> None:
    messages = question(new_picture())
    ours = service.client.chat(messages, max_tokens=8, temperature=0)
    whole = gathered(model.stream(messages, max_tokens=8, stream_usage=True))
    assert whole.content == ours.text
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == ours.usage.completion_tokens


async def test_with_asyncio(service: Service) -> None:
    model = chat(service)
    answer = await model.ainvoke([shown()], max_tokens=4)
    chunks = [chunk async for chunk in model.astream([shown()], max_tokens=4)]
    assert answer.usage_metadata is not None
    assert chunks


@pytest.mark.parametrize("choice", ["any", "required", "look"])
def test_tools_are_bound_called_and_answered(model: ChatOpenAI, choice: str) -> None:
    bound = model.bind_tools([look, rest], tool_choice=choice, parallel_tool_calls=False)
    messages: list[Any] = [shown()]
    answer = bound.invoke(messages, max_tokens=60)
    assert isinstance(answer, AIMessage)
    (call,) = answer.tool_calls
    assert not answer.invalid_tool_calls
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    assert call["name"] in ("look", "rest") if choice != "look" else call["name"] == "look"

    streamed = gathered(bound.stream(messages, max_tokens=60))
    assert [(each["name"], each["args"]) for each in streamed.tool_calls] == [
        (call["name"], call["args"])
    ]

    result = (look if call["name"] == "look" else rest).invoke(call)
    assert isinstance(result, ToolMessage)
    free = model.bind_tools([look, rest])
    final = free.invoke([*messages, answer, result], max_tokens=4)
    assert final.usage_metadata is not None
    assert answer.usage_metadata is not None
    assert final.usage_metadata["input_tokens"] > answer.usage_metadata["input_tokens"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(service: Service, tokenizer: Tokenizer, method: Any) -> None:
    # Left to itself, the random model would put white space into JSON without end.
    encode = tokenizer.instruct_tokenizer.tokenizer.encode
    bias = {encode(mark, False, False)[0]: 100 for mark in '"{}:,'}
    structured = chat(service, max_tokens=90, logit_bias=bias).with_structured_output(
        Animal, method=method
    )
    animal = structured.invoke([shown()])
    assert isinstance(animal, Animal)


def gathered(chunks: Iterator[Any]) -> AIMessageChunk:
    first, *rest_ = chunks
    whole = first
    for chunk in rest_:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    return whole


def test_messages_come_in_any_order_that_the_template_takes(model: ChatOpenAI) -> None:
    rule, greeting = SystemMessage("Be brief."), AIMessage("How can I help you?")
    for messages in (
        [rule, SystemMessage("Be kind."), shown()],
        [HumanMessage("Look."), shown()],
        [rule, greeting, shown()],
        [shown(), AIMessage(""), HumanMessage("Once more.")],
    ):
        assert model.invoke(messages, max_tokens=4).usage_metadata
