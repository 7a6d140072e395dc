"""LangChain: chat, agents, structured output, and the Responses."""

from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from tests.clients.asking import ANSWER, BASE64, DATA_URL, MODEL, QUESTION, V1, Seen

IMAGES: dict[str, Any] = {
    "openai": {"type": "image_url", "image_url": {"url": DATA_URL}},
    "langchain": {"type": "image", "base64": BASE64, "mime_type": "image/png"},
}


@tool
def look(at: Literal["street", "sky"]) -> str:
    """Looks at a part of the image."""
    return f"The {at} is empty."


def chat(is_responses: bool = False, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL,
        base_url=V1,
        api_key="any",
        temperature=0,
        max_retries=0,
        use_responses_api=is_responses,
        stream_usage=True,
        **options,
    )


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def is_responses(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("form", IMAGES)
def test_an_image(is_responses: bool, form: str) -> None:
    message = HumanMessage([IMAGES[form], {"type": "text", "text": QUESTION}])
    model = chat(is_responses)
    assert model.invoke([message]).text == ANSWER
    chunks = list(model.stream([message]))
    assert "".join(chunk.text for chunk in chunks) == ANSWER
    assert any(chunk.usage_metadata for chunk in chunks)


def test_messages_of_one_role_in_a_row(is_responses: bool) -> None:
    message = HumanMessage([IMAGES["openai"]])
    system = [SystemMessage("Be A."), SystemMessage("Be B.")]
    assert chat(is_responses).invoke([*system, message, HumanMessage(QUESTION)]).text


def test_structured_output(is_responses: bool) -> None:
    message = HumanMessage([IMAGES["openai"], {"type": "text", "text": QUESTION}])
    for method in ("json_schema", "function_calling"):
        model = chat(is_responses, max_tokens=200).with_structured_output(Seen, method=method)
        assert isinstance(model.invoke([message]), Seen)


def test_a_tool_and_its_result(is_responses: bool) -> None:
    message = HumanMessage(QUESTION)
    model = chat(is_responses, max_tokens=100)
    first = model.bind_tools([look], tool_choice="look").invoke([message])
    (call,) = first.tool_calls
    assert call["args"]["at"] in ("street", "sky")
    then = model.bind_tools([look]).invoke([message, first, look.invoke(call)])
    assert then.text


def test_an_agent() -> None:
    agent = create_agent(
        chat(max_tokens=100), [], system_prompt="Be A.", response_format=ToolStrategy(Seen)
    )
    message = {"role": "user", "content": [IMAGES["langchain"], {"type": "text", "text": QUESTION}]}
    assert isinstance(agent.invoke({"messages": [message]})["structured_response"], Seen)
