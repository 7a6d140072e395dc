"""A client that leaves a stream of any API ends its work in every tier."""

import asyncio
from typing import Any

import httpx

from tests.support.fake_tiers import FakeDecoder, never_ends
from tests.support.gateway_harness import eventually
from tests.support.http_chat import CHAT, HELLO

ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HELLO},
    "/v1/completions": {"prompt": ["Hi", "Ho"]},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 9},
}


async def test_no_permit_and_no_call_outlives_its_client(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [never_ends]
    for route, asked in ASKED.items():
        before = sum(decoder.cancelled for decoder in decoders)
        async with http.stream("POST", route, json=asked | {"stream": True}) as response:
            assert response.status_code == 200
            await anext(response.aiter_bytes())

        def are_gone(before: int = before) -> bool:
            return sum(decoder.cancelled for decoder in decoders) > before

        await eventually(are_gone)
        async with asyncio.timeout(60):
            while (await http.get("/load")).json() != {"server_load": 0}:
                await asyncio.sleep(0)
