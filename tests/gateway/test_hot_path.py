"""A token passes three of the gateway's generators, by either API."""

import asyncio
from typing import Any

import httpx

from pixtral.v1 import chat_pb2
from tests.support.fake_tiers import FakeDecoder, never_ends
from tests.support.gateway_harness import Client, eventually
from tests.support.gateway_pictures import text, user
from tests.support.generators import generators_of


def waiting_for_a_token() -> list[list[str]]:
    """The generators of each task that waits for a decoder."""
    chains = map(generators_of, asyncio.all_tasks())
    return [chain for chain in chains if "decoders.generate" in chain]


async def test_a_token_passes_three_generators_over_grpc(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [never_ends]
    chat = chat_pb2.Chat(messages=[user(text("Hello?"))])
    stream = client.stub.StreamComplete(chat_pb2.StreamCompleteRequest(chat=chat))
    first: Any = await stream.read()
    assert first.delta.text == "Hello"

    await eventually(waiting_for_a_token)
    assert waiting_for_a_token() == [
        ["chat_service.StreamComplete", "pipeline.stream", "decoders.generate"]
    ]
    stream.cancel()


async def test_a_token_passes_three_generators_over_http(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [never_ends]
    body = {"messages": [{"role": "user", "content": "Hello?"}], "stream": True}
    async with (
        httpx.AsyncClient(base_url=client.url, trust_env=False, timeout=60) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        async for line in response.aiter_lines():
            if "Hello" in line:
                break
        await eventually(waiting_for_a_token)
        assert waiting_for_a_token() == [
            ["chat_response.chunks", "pipeline.stream", "decoders.generate"]
        ]
