"""Typed Python functions as tools: schemas, values of a call, and the loop of both clients."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from pixtral.v1 import chat_pb2
from pixtral_client import AsyncClient, Client, ToolError, ToolRun, TooManyRounds
from pixtral_client.functions import FunctionTool
from tests.support.fake_gateway import FakeGateway, serving

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
CALLED = [
    chat_pb2.ToolCall(id="a12345678", name="add", arguments='{"x": 2, "y": 3}'),
    chat_pb2.ToolCall(id="b12345678", name="add", arguments='{"x": "two"}', index=1),
    chat_pb2.ToolCall(id="c12345678", name="fly", arguments="{}", index=2),
]
Run = Callable[..., Any]


class Point(BaseModel):
    x: int
    y: int = Field(ge=0)


def add(x: int, y: int = 1) -> int:
    """Adds two numbers,
    whole ones.

    It never fails.

    Args:
        x: the first
            of them.
        y (int): the second.

    Returns:
        sum: of both.
    """
    return x + y


def every_type(
    a: str,
    b: float,
    c: bool | None,
    d: Literal["up", "down"],
    e: list[int],
    f: dict[str, float],
    g: Annotated[str, "where it is"],
    h: Any,
    *,
    i: list[Point],
    j: Annotated[int, Field(ge=1)] = 1,
) -> None:
    """Takes all."""


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()
    fake.rounds = [CALLED, []]
    with serving(fake) as address:
        fake.address = address
        yield fake


@pytest.fixture(params=["sync", "asyncio"])
async def run(request: pytest.FixtureRequest, gateway: FakeGateway) -> AsyncIterator[Run]:
    if request.param == "asyncio":
        async with AsyncClient(gateway.address, timeout=60) as client:
            yield client.run_tools
        return

    async def awaited(*given: Any, **more: Any) -> ToolRun:
        return other.run_tools(*given, **more)

    with Client(gateway.address, timeout=60) as other:
        yield awaited


def test_a_schema_is_made_of_annotations_and_docstring() -> None:
    assert FunctionTool(add).definition == {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds two numbers, whole ones.",
            "parameters": {
                "type": "object",
                "properties": {
                    "x": {"type": "integer", "description": "the first of them."},
                    "y": {"type": "integer", "description": "the second."},
                },
                "required": ["x"],
                "additionalProperties": False,
            },
        },
    }


def test_types_become_their_schemas() -> None:
    parameters = FunctionTool(every_type).definition["function"]["parameters"]
    properties = parameters["properties"]
    assert properties["b"] == {"type": "number"}
    assert properties["c"] == {"anyOf": [{"type": "boolean"}, {"type": "null"}]}
    assert properties["d"] == {"enum": ["up", "down"]}
    assert properties["e"] == {"type": "array", "items": {"type": "integer"}}
    assert properties["f"] == {"type": "object", "additionalProperties": {"type": "number"}}
    assert properties["g"] == {"type": "string", "description": "where it is"}
    assert properties["h"] == {}
    assert properties["j"] == {"type": "integer", "minimum": 1}
    assert parameters["required"] == ["a", "b", "c", "d", "e", "f", "g", "h", "i"]
    items = properties["i"]["items"]
    if "$ref" in items:
        items = parameters["$defs"][items["$ref"].removeprefix("#/$defs/")]
    assert items["properties"]["y"]["minimum"] == 0


def test_arguments_become_values_of_the_types() -> None:
    read = FunctionTool(every_type).read(
        json.dumps(
            {
                **{"a": "text", "b": 1, "c": None, "d": "up", "e": [1], "f": {"k": 2}, "g": ""},
                **{"h": [None], "i": [{"x": 1, "y": 2}]},
            }
        )
    )
    assert read["b"] == 1.0
    assert isinstance(read["b"], float)
    assert read["i"] == [Point(x=1, y=2)]
    assert read["f"] == {"k": 2.0}
    assert "j" not in read


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "missing: x"),
        ('{"x": 1, "z": 2}', "there is no parameter z"),
        ('{"x": true}', "x must be of type integer"),
        ('{"x": 1.5}', "x must be of type integer"),
        ('{"x": null}', "x must be of type integer"),
    ],
)
def test_wrong_arguments_are_named_for_the_model(arguments: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        FunctionTool(add).read(arguments)


def test_wrong_values_are_named_by_their_place() -> None:
    def pick(points: list[Point], side: Literal["left", "right"], size: int | None = None) -> None:
        """Picks."""

    read = FunctionTool(pick).read
    with pytest.raises(ToolError, match=r"points\[0\]"):
        read('{"points": [{"x": 1, "y": -1}], "side": "left"}')
    with pytest.raises(ToolError, match="side must be one of 'left', 'right'"):
        read('{"points": [], "side": "up"}')
    with pytest.raises(ToolError, match="size must be of type integer; or size must be of type"):
        read('{"points": [], "side": "left", "size": "big"}')


def test_what_is_no_tool_is_named() -> None:
    def untyped(x):  # type: ignore[no-untyped-def]
        """Has no types."""

    def many(*x: int) -> None:
        """Has no names."""

    with pytest.raises(TypeError, match=r"untyped\(x\): a tool's parameter needs a type"):
        FunctionTool(untyped)
    with pytest.raises(TypeError, match=r"many\(x\): a tool has named parameters only"):
        FunctionTool(many)


async def test_the_loop_runs_what_is_called_and_asks_again(run: Run, gateway: FakeGateway) -> None:
    done = await run(HELLO, [add], tool_choice="required", max_tokens=9)
    assert done.text == "A cat on a mat."
    first, second = gateway.requests
    assert [tool.name for tool in first.chat.tools] == ["add"]
    assert first.chat.HasField("tool_choice")
    assert not second.chat.HasField("tool_choice"), "it would call for ever"
    assert second.chat.sampling.max_tokens == 9
    results = [message.content[0].text for message in second.chat.messages[2:]]
    assert results == [
        "5",
        "error: x must be of type integer",
        "error: there is no tool fly",
    ]
    assert [message.tool_call_id for message in second.chat.messages[2:]] == [
        call.id for call in CALLED
    ]
    assert [message["role"] for message in done.messages] == [
        *("user", "assistant", "tool", "tool", "tool", "assistant")
    ]
    assert HELLO == [{"role": "user", "content": "Hello"}], "the caller's list stays as it is"


async def test_a_tool_error_is_for_the_model_and_any_other_for_the_caller(
    run: Run, gateway: FakeGateway
) -> None:
    def add(x: int, y: int = 0) -> int:
        """Adds."""
        raise ToolError("no numbers today") if failing == "tool" else KeyError("a bug")

    failing = "tool"
    gateway.rounds = [CALLED[:1], []]
    await run(HELLO, [add])
    (result,) = gateway.requests[-1].chat.messages[2:]
    assert result.content[0].text == "error: no numbers today"
    failing = "bug"
    gateway.rounds = [CALLED[:1], []]
    with pytest.raises(KeyError, match="a bug"):
        await run(HELLO, [add])


async def test_a_model_that_calls_for_ever_is_stopped(run: Run, gateway: FakeGateway) -> None:
    gateway.rounds = [CALLED[:1]] * 10
    with pytest.raises(TooManyRounds, match="raise max_rounds") as caught:
        await run(HELLO, [add], max_rounds=3)
    assert len(gateway.requests) == 3
    assert caught.value.messages[-1]["role"] == "tool"


async def test_results_are_text_or_json(run: Run, gateway: FakeGateway) -> None:
    @dataclass
    class Found:
        at: int

    found: list[Any] = ["text", {"a": [1]}, Point(x=1, y=2), Found(3), None]

    def add(x: int, y: int = 0) -> Any:
        """Finds."""
        return found[x]

    calls = [
        chat_pb2.ToolCall(id=f"a1234567{i}", name="add", arguments=f'{{"x": {i}}}', index=i)
        for i in range(len(found))
    ]
    gateway.rounds = [calls, []]
    await run(HELLO, [add])
    assert [message.content[0].text for message in gateway.requests[-1].chat.messages[2:]] == [
        *("text", '{"a": [1]}', '{"x": 1, "y": 2}', '{"at": 3}', "null")
    ]


async def test_coroutines_are_awaited(gateway: FakeGateway) -> None:
    async def add(x: int, y: int) -> int:
        """Adds."""
        return x + y

    gateway.rounds = [CALLED[:1], []]
    async with AsyncClient(gateway.address, timeout=60) as client:
        done = await client.run_tools(HELLO, [add])
    assert done.messages[2]["content"] == "5"
