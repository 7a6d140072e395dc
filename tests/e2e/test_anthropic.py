"""Anthropic's client, unmodified, against the running service."""

import base64
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import pytest

from tests.support.stack.new_picture import new_picture
from tests.support.stack.openai_question import MODEL, SCHEMA, question
from tests.support.stack.service import Service

LOOK: Any = {"name": "look", "description": "Looks at an animal.", "input_schema": SCHEMA}
# Its client has no name for a temperature any more.
GREEDY: dict[str, Any] = {"model": MODEL, "extra_body": {"temperature": 0}}


@pytest.fixture(scope="module")
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def shown(*pictures: bytes) -> list[Any]:
    """`question`'s user, in the form of this API."""
    images = [
        {
            "type": "image",
            "source": {
                "type": "base64",
                "media_type": "image/png",
                "data": base64.b64encode(picture).decode(),
            },
        }
        for picture in pictures
    ]
    return [{"role": "user", "content": [*images, {"type": "text", "text": "What is this?"}]}]


def prompt_tokens(usage: anthropic.types.Usage) -> int:
    return usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_an_image_is_answered_as_in_chat(service: Service, claude: anthropic.Anthropic) -> None:
    picture = new_picture()
    ours = service.client.chat(question(picture), max_tokens=8, temperature=0)
    request: dict[str, Any] = {**GREEDY, "system": "Be brief.", "messages": shown(picture)}
    whole = claude.messages.create(max_tokens=8, **request)
    with claude.messages.stream(max_tokens=8, **request) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    counted = claude.messages.count_tokens(**request)
    messages: list[Any] = [whole, streamed]
    for message in messages:
        (block,) = message.content
        assert block.type == "text"
        assert block.text == text == ours.text
        assert message.stop_reason == (
            "max_tokens" if ours.finish_reason == "length" else "end_turn"
        )
        assert prompt_tokens(message.usage) == counted.input_tokens == ours.usage.prompt_tokens
        assert message.usage.output_tokens == ours.usage.completion_tokens


def test_a_tool_is_called_and_answered_with_an_image(claude: anthropic.Anthropic) -> None:
    request: dict[str, Any] = {**GREEDY, "tools": [LOOK], "max_tokens": 60}
    forced: Any = {"type": "any", "disable_parallel_tool_use": True}
    messages = shown(new_picture())
    whole = claude.messages.create(messages=messages, tool_choice=forced, **request)
    with claude.messages.stream(messages=messages, tool_choice=forced, **request) as stream:
        streamed = stream.get_final_message()
    (call,), (same,) = whole.content, streamed.content
    assert call.type == same.type == "tool_use"
    assert (call.name, call.input) == (same.name, same.input)
    assert whole.stop_reason == streamed.stop_reason == "tool_use"
    jsonschema.validate(call.input, SCHEMA)
    counted = claude.messages.count_tokens(
        model=MODEL, messages=messages, tools=[LOOK], tool_choice={"type": "any"}
    )
    assert counted.input_tokens == prompt_tokens(whole.usage)

    (picture,) = shown(new_picture())[0]["content"][:1]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [picture]}
    messages += [
        {"role": "assistant", "content": whole.content},
        {"role": "user", "content": [result, {"type": "text", "text": "And now?"}]},
    ]
    then = claude.messages.create(messages=messages, **request | {"max_tokens": 4})
    counted = claude.messages.count_tokens(model=MODEL, messages=messages, tools=[LOOK])
    assert counted.input_tokens == prompt_tokens(then.usage)
    assert then.model_extra is not None
    assert [image["cached"] for image in then.model_extra["pixtral"]["images"]] == [True, False]


def test_what_ended_an_answer_is_told(service: Service, claude: anthropic.Anthropic) -> None:
    text = service.client.chat(question(), max_tokens=8, temperature=0).text
    stop = text[len(text) // 2 :]
    assert stop
    message = claude.messages.create(
        **GREEDY, system="Be brief.", messages=shown(), max_tokens=8, stop_sequences=[stop]
    )
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)


def test_errors_are_anthropics_own(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as lost:
        claude.messages.create(model="another", messages=shown(), max_tokens=4)
    with pytest.raises(anthropic.BadRequestError) as refused:
        claude.messages.create(messages=shown(b"no image"), **GREEDY, max_tokens=4)
    assert MODEL in str(lost.value)
    assert "messages.0.content.0.source.data" in str(refused.value)
