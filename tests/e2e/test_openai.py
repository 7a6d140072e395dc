"""The clients that people have, unmodified, against the running service."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from mistralai.client import Mistral
from mistralai.client.errors import SDKError

from tests.support.stack.new_picture import new_picture
from tests.support.stack.openai_question import MODEL, OPTIONS, SCHEMA, question, url_of
from tests.support.stack.service import Service, wait_until
from tests.support.vllm_bench import PICTURES, bench

TOOLS: Any = [
    {"type": "function", "function": {"name": "look", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "rest", "parameters": {}}},
]
NAMED = {"type": "function", "function": {"name": "look"}}


def test_openais_client_gets_what_ours_gets(service: Service, client: openai.OpenAI) -> None:
    messages = question(new_picture(), new_picture())
    ours = service.client.chat(messages, **OPTIONS)
    answer = client.chat.completions.create(
        model=MODEL,
        messages=messages,
        max_tokens=12,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    assert answer.choices[0].message.content == ours.text
    assert answer.choices[0].finish_reason == ours.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == ours.usage.prompt_tokens
    assert answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens_details.cached_tokens or 0) > 0
    assert answer.model_extra is not None
    assert [image["cached"] for image in answer.model_extra["pixtral"]["images"]] == [True, True]
    assert answer._request_id


def test_openais_client_streams_the_same(service: Service, client: openai.OpenAI) -> None:
    messages = question(new_picture())
    ours = service.client.chat(messages, **OPTIONS)
    stream = client.chat.completions.create(
        model=MODEL,
        messages=messages,
        max_completion_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    *chunks, last = stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ours.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.usage is not None
    assert last.usage.total_tokens == ours.usage.prompt_tokens + 12
    # Neither one chunk in all nor one a character.
    assert 4 <= len(chunks) <= 14


def test_openais_helpers_for_streams(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=question(), max_tokens=4, temperature=0
    ) as stream:
        texts = [event.delta for event in stream if event.type == "content.delta"]
    assert "".join(texts) == stream.current_completion_snapshot.choices[0].message.content


async def test_openais_client_asyncio(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
        answer = await client.chat.completions.create(
            model=MODEL, messages=question(), max_tokens=2
        )
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_openais_client_lists_the_model(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert model == client.models.retrieve(MODEL)
    assert model.id == MODEL


def test_openais_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    ask = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as lost:
        ask(model="gpt-2", messages=question())
    with pytest.raises(openai.BadRequestError) as refused:
        ask(model=MODEL, messages=question(b"no picture"))
    with pytest.raises(openai.BadRequestError) as unsupported:
        ask(model=MODEL, messages=question(), tools=[{"type": "custom", "custom": {"name": "a"}}])
    with pytest.raises(openai.BadRequestError) as too_long:
        ask(model=MODEL, messages=[{"role": "user", "content": "word " * 40_000}], stream=True)
    assert lost.value.code == "model_not_found"
    assert refused.value.param == "messages.1.content.0.image_url"
    assert unsupported.value.param == "tools.0.type"
    assert too_long.value.code == "context_length_exceeded"


def test_answers_are_held_to_a_form_and_their_tokens_told(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=question(),
        n=2,
        seed=1,
        logprobs=True,
        top_logprobs=2,
        max_tokens=200,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {**schema, "additionalProperties": False}},
        },
    )
    assert len(answer.choices) == 2
    for choice in answer.choices:
        assert choice.message.content is not None
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content)["a"], bool)
        for token in choice.logprobs.content:
            assert token.logprob <= 0
            assert len(token.top_logprobs) == 2


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_openais_client_calls_tools(client: openai.OpenAI, choice: Any) -> None:
    messages = question(new_picture())
    options: Any = {"model": MODEL, "tools": TOOLS, "tool_choice": choice, "max_tokens": 60}
    options |= {"parallel_tool_calls": False, "temperature": 0}
    answer = client.chat.completions.create(messages=messages, **options)
    message = answer.choices[0].message
    assert message.content is None
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert answer.choices[0].finish_reason == "tool_calls"
    jsonschema.validate(
        json.loads(call.function.arguments), SCHEMA if call.function.name == "look" else {}
    )

    with client.chat.completions.stream(messages=messages, **options) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert streamed.message.tool_calls is not None
    (same,) = streamed.message.tool_calls
    assert (same.function.name, same.function.arguments) == (
        call.function.name,
        call.function.arguments,
    )

    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "It is a cat."}
    answered = client.chat.completions.create(
        model=MODEL, messages=[*messages, message, result], tools=TOOLS, max_tokens=4
    )
    assert answered.usage is not None
    assert answer.usage is not None
    assert answered.usage.prompt_tokens > answer.usage.prompt_tokens


def test_a_stream_that_is_closed_stops_the_engine(service: Service, client: openai.OpenAI) -> None:
    wait_until(service.is_idle, "idle before")
    before = service.generated()
    with client.chat.completions.create(
        model=MODEL,
        messages=question(),
        max_tokens=20_000,
        stream=True,
        extra_body={"ignore_eos": True},
    ) as stream:
        assert next(iter(stream)).choices
        assert service.running() == 1
    wait_until(service.is_idle, "engine stopped and permit freed after the close")
    assert 0 < service.generated() - before < 20_000


def test_mistrals_client(service: Service, url: str) -> None:
    picture = new_picture()
    shown = {"type": "image_url", "image_url": url_of(picture)}
    messages: Any = [{"role": "user", "content": [shown, {"type": "text", "text": "What?"}]}]
    ours = service.client.chat(messages, max_tokens=8, temperature=0)
    with Mistral(api_key="any", server_url=url) as client:
        answer = client.chat.complete(
            model=MODEL, messages=messages, max_tokens=8, temperature=0, random_seed=1
        )
        with client.chat.stream(
            model=MODEL, messages=messages, max_tokens=8, temperature=0
        ) as stream:
            chunks = [event.data for event in stream]
        begun: Any = [*messages, {"role": "assistant", "content": "There are", "prefix": True}]
        continued = client.chat.complete(
            model=MODEL, messages=begun, max_tokens=8, temperature=0, stop=["never said"]
        )
        listed = client.models.list()
        with pytest.raises(SDKError) as refused:
            client.chat.complete(model="another", messages=messages)
    assert answer.choices[0].message is not None
    deltas = [str(chunk.choices[0].delta.content) for chunk in chunks]
    assert answer.choices[0].message.content == "".join(deltas) == ours.text
    # It has no way to ask for it.
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
    assert continued.choices[0].message is not None
    assert str(continued.choices[0].message.content).startswith("There are")
    assert answer.usage.prompt_tokens == ours.usage.prompt_tokens
    assert [card.id for card in listed.data or ()] == [MODEL]
    assert refused.value.status_code == 404


@pytest.mark.parametrize("choice", ["any", "required", NAMED], ids=["any", "required", "named"])
def test_mistrals_client_calls_tools(url: str, choice: Any) -> None:
    messages: Any = [{"role": "user", "content": "What is this?"}]
    options: Any = {"model": MODEL, "tools": TOOLS, "tool_choice": choice, "max_tokens": 60}
    options |= {"parallel_tool_calls": False, "temperature": 0}
    with Mistral(api_key="any", server_url=url) as client:
        message = client.chat.complete(messages=messages, **options).choices[0].message
        assert message is not None
        assert message.tool_calls
        (call,) = message.tool_calls
        with client.chat.stream(messages=messages, **options) as stream:
            choices = [event.data.choices[0] for event in stream]
        result = {"role": "tool", "name": "look", "content": "A cat.", "tool_call_id": call.id}
        answered = client.chat.complete(
            model=MODEL, messages=[*messages, message, result], tools=TOOLS, max_tokens=4
        )
    pieces = [piece for each in choices for piece in each.delta.tool_calls or ()]
    assert "".join(each.function.name for each in pieces) == call.function.name
    assert "".join(str(each.function.arguments) for each in pieces) == call.function.arguments
    assert choices[-1].finish_reason == "tool_calls"
    assert answered.usage.completion_tokens


def test_vllms_own_benchmark(url: str, checkpoint: Path, tmp_path: Path) -> None:
    flags = {
        "backend": "openai-chat",
        "base-url": url,
        "endpoint": "/v1/chat/completions",
        "model": MODEL,
        "tokenizer": str(checkpoint),
        "dataset-name": "random-mm",
        "random-input-len": "8",
        "random-output-len": "6",
        "num-prompts": "4",
        **PICTURES,
    }
    measured = bench(flags, tmp_path, seconds=240)
    assert (measured["completed"], measured["failed"]) == (4, 0)
    assert measured["total_output_tokens"] == 4 * 6
