"""Tool calls through every process: told as calls, held to their schemas."""

import json
from typing import Any

import jsonschema
import pytest

from pixtral_client import Completion, InvalidRequest
from tests.support.stack.new_picture import new_picture
from tests.support.stack.service import Service

TOOL_CALLS = 9
# All that is in them ends: the random model would fill a text without end.
LOOK: dict[str, Any] = {
    "name": "look",
    "description": "Looks at a part of the picture.",
    "parameters": {
        "type": "object",
        "properties": {
            # With `maxLength`, a call may have control characters, which are not JSON.
            "at": {"type": "string", "pattern": "^[^\\u0000-\\u001f]{0,8}$"},
            "how": {"$ref": "#/$defs/how"},
        },
        "required": ["at", "how"],
        "additionalProperties": False,
        "$defs": {"how": {"enum": ["near", "far"]}},
    },
}
COUNT: dict[str, Any] = {
    "name": "count",
    "parameters": {
        "type": "object",
        "properties": {"what": {"enum": ["cats", "dogs"]}},
        "additionalProperties": False,
    },
}
REST: dict[str, Any] = {"name": "rest"}
TOOLS = [LOOK, COUNT, REST]
SCHEMAS = {tool["name"]: tool.get("parameters", {"maxProperties": 0}) for tool in TOOLS}


def ask(service: Service, messages: list[Any], **options: Any) -> Completion:
    with service.client.stream(messages, tools=TOOLS, **options) as stream:
        for _ in stream:
            pass
    assert stream.completion is not None
    return stream.completion


def question() -> list[dict[str, Any]]:
    shown = {"type": "image", "image": new_picture()}
    return [{"role": "user", "content": [shown, {"type": "text", "text": "What is this?"}]}]


@pytest.mark.parametrize("choice", ["required", {"name": "look"}, {"name": "rest"}], ids=str)
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_call_that_must_be_made_is_of_its_schema(
    service: Service, choice: Any, temperature: float
) -> None:
    messages = question()
    options: dict[str, Any] = {"temperature": temperature, "seed": 3, "max_tokens": 200}
    options |= {"tool_choice": choice, "parallel_tool_calls": False}
    answer = ask(service, messages, **options)

    (call,) = answer.tool_calls
    assert (answer.text, answer.finish_reason) == ("", "tool_calls")
    assert choice in ("required", {"name": call.name})
    jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
    whole = service.client.chat(messages, tools=TOOLS, **options)
    (same,) = whole.tool_calls
    assert (same.name, same.arguments) == (call.name, call.arguments)
    assert same.id != call.id
    assert whole.token_ids == answer.token_ids

    counted = service.client.count_tokens(messages, tools=TOOLS, tool_choice=choice)
    assert counted.prompt_tokens == answer.usage.prompt_tokens

    messages += [
        {"role": "assistant", "tool_calls": answer.tool_calls},
        {"role": "tool", "tool_call_id": call.id, "content": "A cat."},
    ]
    then = ask(service, messages, temperature=0, max_tokens=4, tool_choice="none")
    assert then.usage.completion_tokens > 0
    assert then.usage.prompt_tokens > service.client.count_tokens(question()).prompt_tokens
    assert [image.cached for image in then.images] == [True]


def test_several_calls_in_one_answer(service: Service) -> None:
    answer = ask(
        service, question(), tool_choice="required", temperature=1, seed=5, max_tokens=400, n=3
    )
    assert len(answer.choices) == 3
    for choice in answer.choices:
        assert choice.tool_calls
        assert [call.index for call in choice.tool_calls] == list(range(len(choice.tool_calls)))
        for call in choice.tool_calls[: None if choice.finish_reason == "tool_calls" else -1]:
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


def test_the_control_token_is_not_told_as_text(service: Service) -> None:
    # It says this and nothing else, which is not a call.
    options: dict[str, Any] = {
        "temperature": 0, "max_tokens": 3, "logit_bias": {TOOL_CALLS: 100}
    }  # fmt: skip
    with_tools = ask(service, question(), **options)
    assert with_tools.token_ids == (TOOL_CALLS,) * 3
    assert (with_tools.text, with_tools.tool_calls) == ("", ())
    assert with_tools.finish_reason == "length"
    without = service.client.chat(question(), **options)
    assert without.text == "[TOOL_CALLS]" * 3


def test_a_schema_that_no_answer_can_be_held_to_is_refused(service: Service) -> None:
    tool = {"name": "look", "parameters": {"type": "object", "not": {"required": ["a"]}}}
    with pytest.raises(InvalidRequest) as refused:
        service.client.chat(question(), tools=[tool], tool_choice="required", max_tokens=4)
    assert [violation.field for violation in refused.value.violations] == ["tools"]
