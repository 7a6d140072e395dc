"""The examples of Pixtral-12B's model card, with other addresses of images."""

from typing import Any

import httpx
import pytest
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from pixtral_client import AsyncClient
from tests.support.fake_tiers import FakeDecoder
from tests.support.gateway_harness import Client
from tests.support.model_card import ADVANCED, NAME, SIMPLE


@pytest.mark.parametrize("more_settings", [{"served_model_name": (NAME, "pixtral")}])
@pytest.mark.parametrize("messages", [SIMPLE, ADVANCED], ids=["simple", "advanced"])
async def test_they_are_answered_over_http_and_by_the_sdk_over_grpc(
    client: Client, decoders: list[FakeDecoder], messages: list[dict[str, Any]]
) -> None:
    async with httpx.AsyncClient(base_url=client.url, trust_env=False, timeout=60) as http:
        asked = {"model": NAME, "messages": messages}
        answer = (await http.post("/v1/chat/completions", json=asked)).json()
        listed = (await http.get("/v1/models")).json()["data"]
        another = await http.post("/v1/chat/completions", json={**asked, "model": "gpt"})
    async with AsyncClient(client.target) as sdk:
        completion = await sdk.chat(messages, model="pixtral", max_tokens=8192)
        models = await sdk.models()

    tokenizer = MistralTokenizer.from_file(client.settings.model_dir / "tekken.json")
    request = ChatCompletionRequest.from_openai(messages)
    expected = tokenizer.encode_chat_completion(request).tokens
    prompts = [list(call.prompt_token_ids) for each in decoders for call in each.calls]
    assert prompts == [expected, expected]
    assert answer["choices"][0]["message"]["content"] == completion.text == "Hello world"
    assert [card["id"] for card in listed] == [model.name for model in models] == [NAME, "pixtral"]
    assert not any(card["parent"] for card in listed)
    assert another.status_code == 404
    assert f"use {NAME}, pixtral" in another.json()["error"]["message"]
