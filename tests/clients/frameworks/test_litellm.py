"""litellm, by each provider that a server of this kind goes by."""

from typing import Any

import litellm
import pytest

from tests.clients.asking import ANSWER, DATA_URL, MODEL, QUESTION, URL, V1, Seen

SHOWN: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": DATA_URL}},
            {"type": "text", "text": QUESTION},
        ],
    }
]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "look", "parameters": Seen.model_json_schema()}}
]
PROVIDERS = ["openai", "hosted_vllm", "mistral"]


@pytest.fixture(params=PROVIDERS)
def to(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"model": f"{request.param}/{MODEL}", "api_base": V1, "api_key": "any"}


def test_an_image(to: dict[str, Any]) -> None:
    whole = litellm.completion(messages=SHOWN, **to)
    chunks = list(litellm.completion(messages=SHOWN, stream=True, **to))
    assert whole.choices[0].message.content == ANSWER
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER


def test_a_tool_and_its_result(to: dict[str, Any]) -> None:
    request = {**to, "tools": TOOLS, "max_tokens": 100}
    first = litellm.completion(messages=SHOWN, tool_choice="required", **request)
    message = first.choices[0].message
    call = message.tool_calls[0]
    Seen.model_validate_json(call.function.arguments)
    results = [
        {"role": "tool", "tool_call_id": each.id, "name": "look", "content": "3"}
        for each in message.tool_calls
    ]
    second = litellm.completion(messages=[*SHOWN, message, *results], **request)
    assert second.choices[0].message.content
    chunks = list(
        litellm.completion(messages=SHOWN, tool_choice="required", stream=True, **request)
    )
    built: Any = litellm.stream_chunk_builder(chunks)
    assert built.choices[0].message.tool_calls[0].function.arguments == call.function.arguments


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_structured_output(provider: str) -> None:
    answer = litellm.completion(
        model=f"{provider}/{MODEL}",
        api_base=V1,
        api_key="any",
        messages=SHOWN,
        response_format=Seen,
        max_tokens=200,
    )
    Seen.model_validate_json(answer.choices[0].message.content)


def test_an_answer_with_a_prefix() -> None:
    begun = [*SHOWN, {"role": "assistant", "content": "There are", "prefix": True}]
    answer = litellm.completion(
        model=f"mistral/{MODEL}", api_base=V1, api_key="any", messages=begun
    )
    assert answer.choices[0].message.content == ANSWER


def test_responses() -> None:
    content = [
        {"type": "input_image", "image_url": DATA_URL},
        {"type": "input_text", "text": QUESTION},
    ]
    answer: Any = litellm.responses(
        model=f"openai/{MODEL}",
        api_base=V1,
        api_key="any",
        input=[{"role": "user", "content": content}],
    )
    assert answer.output[0].content[0].text == ANSWER


def test_text_completion() -> None:
    answer = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}",
        api_base=V1,
        api_key="any",
        prompt="There are",
        max_tokens=4,
    )
    assert answer.choices[0].text


async def test_anthropics_messages_by_its_bridge_and_directly() -> None:
    for model, base in ((f"openai/{MODEL}", V1), (f"anthropic/{MODEL}", URL)):
        answer: Any = await litellm.anthropic.messages.acreate(
            model=model, api_base=base, api_key="any", messages=[
                {"role": "user", "content": "Hello!"}
            ], max_tokens=20,
        )  # fmt: skip
        assert answer["content"][0]["text"]
    answer = litellm.completion(
        model=f"anthropic/{MODEL}", api_base=URL, api_key="any", messages=SHOWN, max_tokens=40
    )
    assert answer.choices[0].message.content == ANSWER
