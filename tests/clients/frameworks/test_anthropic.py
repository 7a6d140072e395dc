"""Anthropic's own client."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.clients.asking import ANSWER, BASE64, MODEL, QUESTION, URL, Seen

IMAGE: Any = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": BASE64},
}
SHOWN: list[Any] = [{"role": "user", "content": [IMAGE, {"type": "text", "text": QUESTION}]}]
TOOL: Any = {"name": "look", "description": "Looks.", "input_schema": Seen.model_json_schema()}


@pytest.fixture(scope="module")
def client() -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=URL, api_key="any", max_retries=0) as client:
        yield client


def test_an_image(client: Any) -> None:
    request: dict[str, Any] = {"model": MODEL, "messages": SHOWN, "max_tokens": 40}
    whole = client.messages.create(**request)
    with client.messages.stream(**request) as stream:
        text = "".join(stream.text_stream)
    assert whole.content[0].text == text == ANSWER
    counted = client.messages.count_tokens(model=MODEL, messages=SHOWN)
    told = whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    assert counted.input_tokens == told


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
def test_a_tool_and_its_result_with_an_image(client: Any, is_streamed: bool) -> None:
    request: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "tools": [TOOL]}
    forced: Any = {"type": "any", "disable_parallel_tool_use": True}
    if is_streamed:
        with client.messages.stream(messages=SHOWN, tool_choice=forced, **request) as stream:
            first: Any = stream.get_final_message()
    else:
        first = client.messages.create(messages=SHOWN, tool_choice=forced, **request)
    (call,) = first.content
    assert first.stop_reason == "tool_use"
    Seen.model_validate(call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [IMAGE]}
    messages = [
        *SHOWN,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    assert client.messages.create(messages=messages, **request).content


def test_structured_output(client: Any) -> None:
    answer = client.messages.parse(model=MODEL, messages=SHOWN, max_tokens=200, output_format=Seen)
    assert isinstance(answer.parsed_output, Seen)


async def test_asyncio() -> None:
    async with (
        anthropic.AsyncAnthropic(base_url=URL, api_key="any") as client,
        client.messages.stream(model=MODEL, messages=SHOWN, max_tokens=40) as stream,
    ):
        assert await stream.get_final_text() == ANSWER
