"""What vLLM's own request models take is answered, in the form of vLLM's own answers."""

import warnings
from typing import Any

import httpx
import pydantic
import pytest

from tests.support.fake_tiers import FakeDecoder, calls_a_tool
from tests.support.http_chat import (
    ANTHROPIC_TOOL,
    RESPONSES_TOOL,
    SHOWN_TO_ANTHROPIC,
    SHOWN_TO_RESPONSES,
)

Model = type[pydantic.BaseModel]
# By route, what is asked.
ASKED: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        "prompt": ["Hi", "Ho"],
        "echo": True,
        "max_tokens": 3,
        "return_token_ids": True,
    },
    "/v1/responses": {
        "input": SHOWN_TO_RESPONSES,
        "tools": [RESPONSES_TOOL | {"strict": False}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 9,
    },
    "/v1/messages": {
        "model": "pixtral-small",
        "messages": SHOWN_TO_ANTHROPIC,
        "max_tokens": 9,
        "tools": [ANTHROPIC_TOOL],
        "thinking": {"type": "disabled"},
    },
    "/v1/messages/count_tokens": {
        "model": "pixtral-small",
        "messages": SHOWN_TO_ANTHROPIC,
        "tools": [ANTHROPIC_TOOL],
    },
    "/detokenize": {"tokens": [1, 1001]},
}


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Model, Model]]:
    """vLLM's own for the request and the answer of each route."""
    with warnings.catch_warnings():
        # vLLM's imports warn of torch's.
        warnings.simplefilter("ignore")
        from vllm.entrypoints.anthropic import protocol as anthropic
        from vllm.entrypoints.openai.completion import protocol as completion
        from vllm.entrypoints.openai.responses import protocol as responses
        from vllm.entrypoints.serve.tokenize import protocol as tokenize
    return {
        "/v1/completions": (completion.CompletionRequest, completion.CompletionResponse),
        "/v1/responses": (responses.ResponsesRequest, responses.ResponsesResponse),
        "/v1/messages": (anthropic.AnthropicMessagesRequest, anthropic.AnthropicMessagesResponse),
        "/v1/messages/count_tokens": (
            anthropic.AnthropicCountTokensRequest,
            anthropic.AnthropicCountTokensResponse,
        ),
        "/detokenize": (tokenize.DetokenizeRequest, tokenize.DetokenizeResponse),
    }


@pytest.mark.parametrize("calls", [False, True], ids=["text", "call"])
async def test_it_is_answered_as_by_vllm(
    http: httpx.AsyncClient,
    decoders: list[FakeDecoder],
    models: dict[str, tuple[Model, Model]],
    calls: bool,
) -> None:
    if calls:
        for decoder in decoders:
            decoder.behaviours = [calls_a_tool]
    for route, asked in ASKED.items():
        request, answer = models[route]
        request.model_validate(asked)
        response = await http.post(route, json=asked)
        assert response.status_code == 200, response.text
        answer.model_validate(response.json())
