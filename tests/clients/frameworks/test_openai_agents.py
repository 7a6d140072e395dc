"""OpenAI's Agents SDK, by its default path, the Responses, and by chat completions."""

from typing import Any, Literal

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)

from tests.clients.asking import ANSWER, DATA_URL, MODEL, QUESTION, V1, Seen

IMAGE: Any = {"type": "input_image", "image_url": DATA_URL, "detail": "auto"}
SHORT = ModelSettings(max_tokens=40, temperature=0)
FORCED = ModelSettings(
    max_tokens=100, temperature=0, tool_choice="required", parallel_tool_calls=False
)


@pytest.fixture(params=["responses", "chat"])
def model(request: pytest.FixtureRequest) -> Any:
    """The name alone takes the default path."""
    client = openai.AsyncOpenAI(base_url=V1, api_key="any", max_retries=0)
    set_default_openai_client(client, use_for_tracing=False)
    set_tracing_disabled(True)
    if request.param == "responses":
        return MODEL
    return OpenAIChatCompletionsModel(model=MODEL, openai_client=client)


async def test_an_image_beside_its_question_and_before_it(model: Any) -> None:
    agent = Agent(name="A", model=model, model_settings=SHORT)
    text: Any = {"type": "input_text", "text": QUESTION}
    together = await Runner.run(agent, [{"role": "user", "content": [IMAGE, text]}])
    apart: Any = [{"role": "user", "content": [IMAGE]}, {"role": "user", "content": QUESTION}]
    assert together.final_output == ANSWER
    assert (await Runner.run(agent, apart)).final_output == ANSWER


async def test_a_stream(model: Any) -> None:
    agent = Agent(name="A", model=model, model_settings=SHORT)
    content = [IMAGE, {"type": "input_text", "text": QUESTION}]
    result = Runner.run_streamed(agent, [{"role": "user", "content": content}])
    kinds = [event.type async for event in result.stream_events()]
    assert "raw_response_event" in kinds
    assert result.final_output == ANSWER


async def test_a_second_turn(model: Any) -> None:
    agent = Agent(name="A", model=model, model_settings=SHORT)
    content = [IMAGE, {"type": "input_text", "text": QUESTION}]
    first = await Runner.run(agent, [{"role": "user", "content": content}])
    second = await Runner.run(
        agent, [*first.to_input_list(), {"role": "user", "content": QUESTION}]
    )
    assert second.final_output


async def test_a_tool_is_called_and_its_result_answered(model: Any) -> None:
    seen: list[str] = []

    @function_tool
    def look(at: Literal["street", "sky"]) -> str:
        """Looks at a part of the image."""
        seen.append(at)
        return "3 shapes"

    agent = Agent(name="A", instructions="Look.", model=model, model_settings=FORCED, tools=[look])
    result = await Runner.run(agent, "Look at it.", max_turns=3)
    assert seen in (["street"], ["sky"])
    assert result.final_output


async def test_a_hand_off(model: Any) -> None:
    second = Agent(name="B", instructions="Be B.", model=model, model_settings=SHORT)
    first = Agent(
        name="A", instructions="Be A.", model=model, model_settings=FORCED, handoffs=[second]
    )
    result = await Runner.run(first, "Hi", max_turns=3)
    assert result.last_agent is second
    assert result.final_output


async def test_an_output_of_a_type(model: Any) -> None:
    agent = Agent(
        name="A", model=model, model_settings=ModelSettings(max_tokens=200), output_type=Seen
    )
    assert isinstance((await Runner.run(agent, "Look.")).final_output, Seen)
