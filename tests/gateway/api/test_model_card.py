"""The examples of Pixtral-12B's model card, as they stand there but for the addresses of images."""

import base64
from typing import Any

import httpx
import pytest
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from pixtral_client import AsyncClient
from tests.support.fake_tiers import FakeDecoder
from tests.support.gateway_harness import Client
from tests.support.gateway_pictures import picture

NAME = "mistralai/Pixtral-12B-2409"
URLS = [
    "data:image/png;base64," + base64.b64encode(picture(*size)).decode()
    for size in ((40, 30), (60, 20), (20, 90))
]
SIMPLE: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Describe this image in one sentence."},
            {"type": "image_url", "image_url": {"url": URLS[0]}},
        ],
    },
]
ADVANCED: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Describe this image in one sentence."},
            {"type": "image_url", "image_url": {"url": URLS[0]}},
            {"type": "image_url", "image_url": {"url": URLS[1]}},
        ],
    },
    {"role": "assistant", "content": "The images show nature."},
    {"role": "user", "content": "More details please and answer only in French!."},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": URLS[2]}}]},
]


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
