"""Pydantic AI, by both of OpenAI's APIs: ordinary programs, each as its documentation has it."""

from typing import Any, Literal

import pytest
from pydantic_ai import Agent, BinaryContent, ModelRetry, NativeOutput, RunContext
from pydantic_ai.messages import ModelRequest, SystemPromptPart, UserPromptPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from tests.clients.asking import ANSWER, MODEL, PNG, QUESTION, V1, Seen

SHORT = ModelSettings(max_tokens=40, temperature=0)
LONG = ModelSettings(max_tokens=200, temperature=0, parallel_tool_calls=False)
IMAGE = BinaryContent(PNG, media_type="image/png")


def calls_first(calls: list[str]) -> Any:
    """Settings by which the model must call a tool until there is one of `calls`."""

    def settings(_: RunContext[None]) -> ModelSettings:
        return SHORT if calls else {**LONG, "tool_choice": "required"}

    return settings


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel], ids=["chat", "responses"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.param(MODEL, provider=OpenAIProvider(base_url=V1, api_key="any"))


def test_the_name_alone_takes_the_default_path() -> None:
    """The base URL is in the environment."""
    result = Agent(f"openai:{MODEL}", model_settings=SHORT).run_sync([IMAGE, QUESTION])
    assert result.output == ANSWER


def test_an_image_and_the_next_turn(model: Any) -> None:
    agent = Agent(model, model_settings=SHORT)
    first = agent.run_sync([IMAGE, QUESTION])
    assert first.output == ANSWER
    second = agent.run_sync(QUESTION, message_history=first.all_messages())
    assert second.output
    assert second.usage.input_tokens > first.usage.input_tokens


async def test_a_stream(model: Any) -> None:
    agent = Agent(model, model_settings=SHORT)
    async with agent.run_stream([IMAGE, QUESTION]) as stream:
        deltas = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
    assert "".join(deltas) == ANSWER
    assert len(deltas) > 1
    assert stream.usage.output_tokens


def test_a_system_prompt_and_instructions(model: Any) -> None:
    agent = Agent(model, system_prompt="Be A.", instructions="Be B.", model_settings=SHORT)
    assert agent.run_sync(QUESTION).output


def test_several_system_prompts(model: Any) -> None:
    agent = Agent(model, system_prompt=["Be A.", "Be B."], model_settings=SHORT)
    assert agent.run_sync(QUESTION).output


def test_a_system_prompt_that_is_made(model: Any) -> None:
    agent: Agent[str, str] = Agent(
        model, deps_type=str, system_prompt="Be A.", model_settings=SHORT
    )

    @agent.system_prompt
    def name(context: RunContext[str]) -> str:
        return f"The user is {context.deps}."

    assert agent.run_sync(QUESTION, deps="Ada").output


def test_several_parts_of_the_user(model: Any) -> None:
    history = [
        ModelRequest([SystemPromptPart("Be A."), UserPromptPart("Look."), UserPromptPart("Well?")])
    ]
    agent = Agent(model, model_settings=SHORT)
    assert agent.run_sync(QUESTION, message_history=history).output


def test_a_history_whose_last_turn_failed(model: Any) -> None:
    history = [ModelRequest([UserPromptPart("Look.")])]
    agent = Agent(model, model_settings=SHORT)
    assert agent.run_sync([IMAGE, QUESTION], message_history=history).output


def test_a_tool_and_its_result(model: Any) -> None:
    looked: list[str] = []

    def look(at: Literal["street", "sky"]) -> str:
        """Looks at a part of the image."""
        looked.append(at)
        return "3 shapes"

    agent = Agent(model, tools=[look], model_settings=calls_first(looked))
    assert agent.run_sync([IMAGE, QUESTION]).output
    assert looked in (["street"], ["sky"])


def test_a_tool_that_returns_an_image(model: Any) -> None:
    shown: list[str] = []

    def picture() -> BinaryContent:
        """Shows the image."""
        shown.append("it")
        return IMAGE

    agent = Agent(model, system_prompt="Be A.", tools=[picture], model_settings=calls_first(shown))
    assert agent.run_sync("Show it.").output
    assert shown == ["it"]


@pytest.mark.parametrize("output", [Seen, NativeOutput(Seen)], ids=["tool", "native"])
def test_an_output_of_a_type(model: Any, output: Any) -> None:
    agent = Agent(model, output_type=output, model_settings=LONG)
    assert isinstance(agent.run_sync([IMAGE, QUESTION]).output, Seen)


def test_an_output_that_is_asked_for_again(model: Any) -> None:
    agent = Agent(model, output_type=Seen, retries=2, model_settings=LONG)
    tries: list[Seen] = []

    @agent.output_validator
    def once(value: Seen) -> Seen:
        tries.append(value)
        if len(tries) == 1:
            raise ModelRetry("Once more.")
        return value

    assert isinstance(agent.run_sync(QUESTION).output, Seen)
    assert len(tries) == 2
