"""Which tools, calls and results are taken, and what field is named where they are not."""

import json
from typing import Any

import pytest

from pixtral.v1 import chat_pb2
from pixtral_core.errors import InvalidRequest
from pixtral_gateway.api.grpc.from_proto import read_conversation, read_tools
from pixtral_gateway.checks.conversation import Conversation, Role
from tests.support.gateway_pictures import (
    assistant,
    calls,
    image,
    picture,
    result,
    system,
    text,
    user,
)

HI = text("hi")
LOOK = chat_pb2.Tool(name="look", description="Looks.", parameters='{"type": "object"}')
GO = chat_pb2.Tool(name="go")
AUTO, NONE, REQUIRED = (
    chat_pb2.ToolChoice(mode=mode)
    for mode in (
        chat_pb2.TOOL_CHOICE_MODE_AUTO,
        chat_pb2.TOOL_CHOICE_MODE_NONE,
        chat_pb2.TOOL_CHOICE_MODE_REQUIRED,
    )
)


def asked(*tools: chat_pb2.Tool, **fields: Any) -> chat_pb2.Chat:
    return chat_pb2.Chat(tools=tools, **fields)


def names(tools: Any) -> list[str]:
    return [tool.name for tool in tools]


def test_the_model_chooses_unless_it_is_told_to() -> None:
    for choice in (None, AUTO):
        tools = read_tools(asked(LOOK, GO, tool_choice=choice))
        assert (names(tools.offered), tools.forced, tools.is_single) == (["look", "go"], (), False)
    assert dict(tools.offered[0].parameters) == {"type": "object"}
    assert dict(tools.offered[1].parameters) == {}

    required = read_tools(asked(LOOK, GO, tool_choice=REQUIRED))
    assert (names(required.forced), required.is_single) == (["look", "go"], False)
    named = read_tools(asked(LOOK, GO, tool_choice=chat_pb2.ToolChoice(name="go")))
    assert (names(named.offered), names(named.forced)) == (["look", "go"], ["go"])
    assert named.is_single
    assert read_tools(asked(LOOK, GO, tool_choice=NONE)).offered == ()
    assert read_tools(asked(tool_choice=AUTO)).offered == ()


def test_calls_are_one_at_a_time_where_that_is_asked_for() -> None:
    assert read_tools(asked(LOOK, parallel_tool_calls=False)).is_single
    assert not read_tools(asked(LOOK, parallel_tool_calls=True)).is_single


UNSPECIFIED = chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_UNSPECIFIED)
LARGE = json.dumps({"enum": ["x" * 30_000]})


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (asked(chat_pb2.Tool()), "tools[0].name"),
        (asked(LOOK, chat_pb2.Tool(name="no such")), "tools[1].name"),
        (asked(chat_pb2.Tool(name="é")), "tools[0].name"),
        (asked(chat_pb2.Tool(name="a" * 65)), "tools[0].name"),
        (asked(chat_pb2.Tool(name="a\n")), "tools[0].name"),
        (asked(LOOK, GO, LOOK), "tools[2].name"),
        (asked(chat_pb2.Tool(name="a", parameters="{")), "tools[0].parameters"),
        (asked(chat_pb2.Tool(name="a", parameters="[]")), "tools[0].parameters"),
        (asked(chat_pb2.Tool(name="a", parameters='{"type": "array"}')), "tools[0].parameters"),
        (asked(chat_pb2.Tool(name="a", parameters="[" * 30_000)), "tools[0].parameters"),
        (asked(chat_pb2.Tool(name="a", parameters=" " * 40_000)), "tools[0].parameters"),
        (
            asked(chat_pb2.Tool(name="a", parameters=json.dumps({"enum": [1, "a"] * 40}))),
            "tools[0].parameters",
        ),
        (
            asked(chat_pb2.Tool(name="a", parameters='{"a":' * 40 + "1" + "}" * 40)),
            "tools[0].parameters",
        ),
        (asked(*(chat_pb2.Tool(name=f"a{i}") for i in range(129))), "tools"),
        (asked(*(chat_pb2.Tool(name=f"a{i}", parameters=LARGE) for i in range(5))), "tools"),
        (asked(GO, tool_choice=UNSPECIFIED), "tool_choice.mode"),
        (asked(GO, tool_choice=chat_pb2.ToolChoice(name="look")), "tool_choice.name"),
        (asked(GO, tool_choice=chat_pb2.ToolChoice(name="")), "tool_choice.name"),
        (asked(tool_choice=REQUIRED), "tool_choice"),
        (asked(tool_choice=chat_pb2.ToolChoice(name="look")), "tool_choice"),
    ],
)
def test_bad_tools_name_their_field(request_: chat_pb2.Chat, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_tools(request_)
    assert refused.value.violations[0][0] == field


def read(*messages: chat_pb2.Message) -> Conversation:
    return read_conversation(messages, max_images=3)


CALL = ("a12345678", "look", '{"at": "cat"}')
OTHER = ("b12345678", "go", "{}")


def test_calls_and_results_come_between_a_question_and_its_answer() -> None:
    conversation = read(
        system(HI),
        user(HI, image(picture(8, 8))),
        calls(CALL, OTHER, parts=[HI]),
        result("b12345678"),
        result("a12345678", HI, text("")),
        calls(CALL),
        result("a12345678", HI),
        assistant(HI),
        user(HI),
        calls(CALL),
        result("a12345678", HI),
        user(HI),
        calls(CALL),
        result("a12345678", HI),
    )
    asked, answered = conversation.turns[2:4]
    assert [(call.id, call.name, call.arguments) for call in asked.calls] == [CALL, OTHER]
    assert (answered.role, answered.parts, answered.call_id) == (Role.TOOL, (), "b12345678")
    assert conversation.characters == 10 * 2 + 4 * (4 + 13) + 2 + 2


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([user(HI), calls(("", "a", "")), result("")], "messages[1].tool_calls[0].id"),
        ([user(HI), calls(("a" * 257, "a", ""))], "messages[1].tool_calls[0].id"),
        ([user(HI), calls(("a", "no such", ""))], "messages[1].tool_calls[0].name"),
        ([user(HI), calls(*((str(i), "a", "") for i in range(129)))], "messages[1].tool_calls"),
        ([user(HI), calls(CALL), result("", HI)], "messages[2].tool_call_id"),
        (
            [chat_pb2.Message(role=chat_pb2.ROLE_USER, content=[HI], tool_call_id="a")],
            "messages[0].tool_call_id",
        ),
        (
            [
                chat_pb2.Message(
                    role=chat_pb2.ROLE_USER, content=[HI], tool_calls=[chat_pb2.ToolCall(id="a")]
                )
            ],
            "messages[0].tool_calls",
        ),
    ],
)
def test_bad_calls_and_results_name_their_field(
    messages: list[chat_pb2.Message], field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(*messages)
    assert refused.value.violations[0][0] == field
