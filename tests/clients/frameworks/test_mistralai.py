"""Mistral's own client."""

from collections.abc import Iterator
from typing import Any

import pytest
from mistralai.client import Mistral

from tests.clients.asking import ANSWER, DATA_URL, MODEL, QUESTION, URL, Seen

SHOWN: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": DATA_URL},
            {"type": "text", "text": QUESTION},
        ],
    }
]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "look", "parameters": Seen.model_json_schema()}}
]


@pytest.fixture(scope="module")
def client() -> Iterator[Mistral]:
    with Mistral(api_key="any", server_url=URL) as client:
        yield client


def test_an_image(client: Any) -> None:
    whole = client.chat.complete(model=MODEL, messages=SHOWN)
    with client.chat.stream(model=MODEL, messages=SHOWN) as stream:
        chunks = [event.data for event in stream]
    assert whole.choices[0].message.content == ANSWER
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == ANSWER
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_an_answer_with_a_prefix(client: Any) -> None:
    begun = [*SHOWN, {"role": "assistant", "content": "There are", "prefix": True}]
    answer = client.chat.complete(model=MODEL, messages=begun)
    assert answer.choices[0].message.content == ANSWER


def test_a_tool_and_its_result(client: Any) -> None:
    request: dict[str, Any] = {"model": MODEL, "tools": TOOLS, "max_tokens": 100}
    first = client.chat.complete(
        messages=SHOWN, tool_choice="any", parallel_tool_calls=False, **request
    )
    message = first.choices[0].message
    (call,) = message.tool_calls
    Seen.model_validate_json(call.function.arguments)
    result = {"role": "tool", "name": "look", "content": "3", "tool_call_id": call.id}
    second = client.chat.complete(messages=[*SHOWN, message, result], **request)
    assert second.choices[0].message.content


def test_structured_output(client: Any) -> None:
    answer = client.chat.parse(Seen, model=MODEL, messages=SHOWN, max_tokens=200)
    assert isinstance(answer.choices[0].message.parsed, Seen)


async def test_asyncio() -> None:
    async with Mistral(api_key="any", server_url=URL) as client:
        answer: Any = await client.chat.complete_async(model=MODEL, messages=SHOWN)
    assert answer.choices[0].message.content == ANSWER
