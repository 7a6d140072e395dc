"""OpenAI's own client."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.clients.asking import ANSWER, DATA_URL, MODEL, QUESTION, V1, Animal, Seen

SHOWN: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": DATA_URL}},
            {"type": "text", "text": QUESTION},
        ],
    }
]
INPUT: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "input_image", "image_url": DATA_URL, "detail": "auto"},
            {"type": "input_text", "text": QUESTION},
        ],
    }
]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=V1, api_key="any", max_retries=0) as client:
        yield client


def test_chat_with_an_image(client: Any) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=SHOWN)
    assert whole.choices[0].message.content == ANSWER
    with client.chat.completions.stream(model=MODEL, messages=SHOWN) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == ANSWER


def test_chat_parsed(client: Any) -> None:
    for form in (Seen, Animal):
        answer = client.chat.completions.parse(
            model=MODEL, messages=SHOWN, response_format=form, max_tokens=200
        )
        assert isinstance(answer.choices[0].message.parsed, form)


def test_chat_with_a_parsed_tool(client: Any) -> None:
    request: dict[str, Any] = {
        "model": MODEL,
        "messages": SHOWN,
        "tools": [openai.pydantic_function_tool(Seen)],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    whole = client.chat.completions.parse(**request)
    with client.chat.completions.stream(**request) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    for answer in (whole, final):
        call = answer.choices[0].message.tool_calls[0]
        assert isinstance(call.function.parsed_arguments, Seen)


def test_responses_with_an_image(client: Any) -> None:
    whole = client.responses.create(model=MODEL, input=INPUT)
    assert whole.output_text == ANSWER
    with client.responses.stream(model=MODEL, input=INPUT) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == ANSWER


def test_responses_parsed(client: Any) -> None:
    request: dict[str, Any] = {
        "model": MODEL,
        "input": INPUT,
        "text_format": Animal,
        "max_output_tokens": 200,
    }
    assert isinstance(client.responses.parse(**request).output_parsed, Animal)
    with client.responses.stream(**request) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_response().output_parsed, Animal)


def test_responses_with_a_tool_and_its_result(client: Any) -> None:
    tools: list[Any] = [openai.pydantic_function_tool(Seen)]
    flat: list[Any] = [{"type": "function", **tool["function"]} for tool in tools]
    first = client.responses.create(
        model=MODEL, input=INPUT, tools=flat, tool_choice="required", parallel_tool_calls=False
    )
    (call,) = first.output
    assert call.type == "function_call"
    Seen.model_validate_json(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
    second = client.responses.create(
        model=MODEL, input=[*INPUT, *first.output, result], tools=flat, max_output_tokens=30
    )
    assert second.output_text


def test_completions(client: Any) -> None:
    request: dict[str, Any] = {"model": MODEL, "prompt": "There are", "max_tokens": 6}
    request |= {"temperature": 0, "logprobs": 1, "extra_body": {"ignore_eos": True}}
    (whole,) = client.completions.create(**request).choices
    chunks = list(client.completions.create(stream=True, **request))
    assert whole.text == "".join(chunk.choices[0].text for chunk in chunks)
    assert whole.logprobs is not None
    assert len(whole.logprobs.tokens or ()) == 6


async def test_asyncio() -> None:
    async with openai.AsyncOpenAI(base_url=V1, api_key="any") as client:
        stream = await client.responses.create(model=MODEL, input=INPUT, stream=True)
        kinds = [event.type async for event in stream]
    assert kinds[-1] == "response.completed"
