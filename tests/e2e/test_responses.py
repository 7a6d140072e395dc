"""OpenAI's Responses through every process, whole and as a stream, by OpenAI's own client."""

import json
from typing import Any

import jsonschema
import openai
import pytest
from openai.types.responses import Response

from pixtral_client import Sampling
from tests.support.fixture_types import Tokenizer
from tests.support.stack.new_picture import new_picture
from tests.support.stack.openai_question import MODEL, OPTIONS, SCHEMA, question, url_of
from tests.support.stack.service import Service

LOOK: dict[str, Any] = {
    "type": "function",
    "name": "look",
    "description": "Looks at an animal.",
    "parameters": SCHEMA,
    "strict": True,
}
# The same tool in the form of chat.
CHAT_LOOK = {"name": "look", "description": "Looks at an animal.", "parameters": SCHEMA}
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "store": False}


def shown(*pictures: bytes) -> list[Any]:
    """`question`, in the form of this API."""
    images = [
        {"type": "input_image", "image_url": url_of(each), "detail": "auto"} for each in pictures
    ]
    return [{"role": "user", "content": [*images, {"type": "input_text", "text": "What is this?"}]}]


def streamed(client: openai.OpenAI, **request: Any) -> tuple[list[str], Response]:
    """The types of all events, and the response that the last one has."""
    with client.responses.stream(**request) as stream:
        events: list[Any] = list(stream)
    return [event.type for event in events], events[-1].response


def test_an_image_is_answered_as_in_chat(service: Service, client: openai.OpenAI) -> None:
    picture = new_picture()
    ours = service.client.chat(question(picture), **OPTIONS)
    request: dict[str, Any] = {
        **GREEDY,
        "instructions": "Be brief.",
        "input": shown(picture),
        "max_output_tokens": 12,
        "extra_body": {"ignore_eos": True},
    }
    whole = client.responses.create(**request)
    kinds, stream = streamed(client, **request)
    for answer in (whole, stream):
        assert answer.output_text == ours.text
        assert answer.status == "incomplete"
        assert answer.incomplete_details is not None
        assert answer.incomplete_details.reason == "max_output_tokens"
        assert answer.usage is not None
        assert answer.usage.input_tokens == ours.usage.prompt_tokens
        assert answer.usage.output_tokens == 12
        assert answer.usage.input_tokens_details.cached_tokens > 0
        assert answer.model_extra is not None
        assert [image["cached"] for image in answer.model_extra["pixtral"]["images"]] == [True]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds.count("response.output_text.delta") > 1
    assert kinds[-1] == "response.incomplete"


def test_a_tool_is_called_and_answered(service: Service, client: openai.OpenAI) -> None:
    request: dict[str, Any] = {
        **GREEDY,
        "tools": [LOOK],
        "max_output_tokens": 60,
        "parallel_tool_calls": False,
    }
    asked = shown(new_picture())
    whole = client.responses.create(input=asked, tool_choice="required", **request)
    kinds, stream = streamed(client, input=asked, tool_choice="required", **request)
    (call,), (same,) = whole.output, stream.output
    assert call.type == same.type == "function_call"
    assert (call.name, call.arguments) == (same.name, same.arguments)
    assert whole.status == stream.status == "completed"
    assert "response.function_call_arguments.done" in kinds
    jsonschema.validate(json.loads(call.arguments), SCHEMA)

    result: dict[str, Any] = {"type": "function_call_output", "call_id": call.call_id}
    result["output"] = [{"type": "input_text", "text": "A cat."}]
    items = [*asked, call.model_dump(), result]
    then = client.responses.create(input=items, tool_choice="none", **request)
    messages: list[dict[str, Any]] = [
        question(b"")[1] | {"content": [new_picture(), "What is this?"]},
        {
            "role": "assistant",
            "tool_calls": [{"id": call.call_id, "name": "look", "arguments": call.arguments}],
        },
        {"role": "tool", "tool_call_id": call.call_id, "content": "A cat."},
    ]
    counted = service.client.count_tokens(messages, tools=[CHAT_LOOK])
    assert then.usage is not None
    # A choice of `none` leaves the tools out of the prompt.
    assert then.usage.input_tokens < counted.prompt_tokens
    assert then.usage.output_tokens > 0
    free = client.responses.create(input=items, tool_choice="auto", **request)
    assert free.usage is not None
    assert free.usage.input_tokens == counted.prompt_tokens


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
def test_text_is_held_to_a_format(
    client: openai.OpenAI, tokenizer: Tokenizer, is_streamed: bool
) -> None:
    # Left to itself, the random model would put white space into JSON without end.
    encode = tokenizer.instruct_tokenizer.tokenizer.encode
    bias = {encode(mark, False, False)[0]: 100 for mark in '"{}:,'}
    request: dict[str, Any] = {
        **GREEDY,
        "input": shown(new_picture()),
        "max_output_tokens": 60,
        "text": {"format": {"type": "json_schema", "name": "animal", "schema": SCHEMA}},
        "extra_body": {"logit_bias": bias},
    }
    if is_streamed:
        _, answer = streamed(client, **request)
    else:
        answer = client.responses.create(**request)
    assert answer.status == "completed"
    jsonschema.validate(json.loads(answer.output_text), SCHEMA)


def test_what_keeps_responses_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**GREEDY, input="And then?", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"


def test_an_answer_goes_on_from_its_beginning(service: Service, client: openai.OpenAI) -> None:
    sampling: Sampling = {**OPTIONS, "max_tokens": 4}
    user: dict[str, Any] = {"role": "user", "content": "What is this?"}
    begun: dict[str, Any] = {"role": "assistant", "content": "It is"}
    ours = service.client.chat([user, begun], continue_final_message=True, **sampling)
    item: dict[str, Any] = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "incomplete",
        "content": [{"type": "output_text", "text": "It is", "annotations": []}],
    }
    items: Any = [user, item]
    answer = client.responses.create(
        **GREEDY,
        input=items,
        max_output_tokens=4,
        extra_body={"ignore_eos": True},
    )
    assert answer.output_text == ours.text
    assert answer.usage is not None
    assert answer.usage.input_tokens == ours.usage.prompt_tokens
