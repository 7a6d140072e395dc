"""LlamaIndex's OpenAILike: chat, and completions, which are its default."""

from typing import Any

import pytest
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

from tests.clients.asking import ANSWER, MODEL, PNG, QUESTION, V1, Seen

SHOWN = [ChatMessage(role="user", blocks=[ImageBlock(image=PNG), TextBlock(text=QUESTION)])]


def made(**options: Any) -> OpenAILike:
    return OpenAILike(
        model=MODEL, api_base=V1, api_key="any", max_tokens=100, max_retries=0, **options
    )


@pytest.fixture
def chat() -> OpenAILike:
    return made(is_chat_model=True, is_function_calling_model=True)


def test_an_image(chat: OpenAILike) -> None:
    assert chat.chat(SHOWN).message.content == ANSWER
    assert [*chat.stream_chat(SHOWN)][-1].message.content == ANSWER


async def test_asyncio(chat: OpenAILike) -> None:
    assert (await chat.achat(SHOWN)).message.content == ANSWER


def test_completions() -> None:
    llm = made()
    whole = llm.complete("There are", temperature=0)
    assert whole.text
    assert [*llm.stream_complete("There are", temperature=0)][-1].text == whole.text


def test_a_tool_and_its_result(chat: OpenAILike) -> None:
    def look(is_near: bool) -> str:
        """Looks."""
        return "3 shapes"

    tool = FunctionTool.from_defaults(look)
    first = chat.chat_with_tools([tool], chat_history=SHOWN, tool_required=True)
    calls = chat.get_tool_calls_from_response(first)
    assert {call.tool_name for call in calls} == {"look"}
    results = [
        ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": call.tool_id})
        for call in calls
    ]
    assert chat.chat([*SHOWN, first.message, *results]).message.content


def test_structured_output(chat: OpenAILike) -> None:
    answer = chat.as_structured_llm(Seen).chat(SHOWN)
    assert isinstance(answer.raw, Seen)
