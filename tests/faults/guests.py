"""Clients that behave badly."""

import asyncio
import time
from contextlib import suppress
from typing import Any

import grpc

from pixtral.v1 import chat_pb2
from pixtral_client import AsyncClient, PixtralError
from pixtral_client.requests import chat_request
from tests.faults.proxy import Link, Proxy, Weather
from tests.faults.stack import Stack, key_of

STREAMS = 2000
SLOW_SECONDS = 12.0
PATIENCE_SECONDS = 60.0


async def flood(stack: Stack) -> None:
    """One client opens streams, has the first words of some, and goes."""
    request = chat_request(
        chat_pb2.StreamCompleteRequest,
        [{"role": "user", "content": "Good morning!"}],
        None,
        {"max_tokens": 100, "ignore_eos": True},
    )
    metadata = (("authorization", f"Bearer {key_of(stack.tenants[0])}"),)
    credentials = stack.tls.credentials()
    address = stack.address("gateway-0")
    async with grpc.aio.secure_channel(address, credentials) as channel:
        method = channel.unary_stream(
            "/pixtral.v1.ChatService/StreamComplete",
            request_serializer=chat_pb2.StreamCompleteRequest.SerializeToString,
            response_deserializer=chat_pb2.StreamCompleteResponse.FromString,
        )
        calls = [method(request, metadata=metadata, timeout=60) for _ in range(STREAMS)]

        async def first_word(call: Any) -> None:
            # There are too many, and most are refused.
            with suppress(grpc.RpcError):
                await call.read()

        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.wait(
                [asyncio.create_task(first_word(call)) for call in calls[:50]],
                return_when=asyncio.ALL_COMPLETED,
            )
        for call in calls:
            call.cancel()


async def read_slowly(stack: Stack) -> None:
    """Reads a byte a second of an answer, until its own deadline and a little longer."""
    link = Link("slow reader")
    async with Proxy(link) as proxy:
        proxy.target = stack.address("gateway-0")
        async with AsyncClient(
            proxy.address, tls=stack.tls, api_key=key_of(stack.tenants[0]), timeout=SLOW_SECONDS
        ) as client:
            begun = time.monotonic()
            try:
                async with await client.stream(
                    [{"role": "user", "content": "Good morning!"}],
                    max_tokens=2000,
                    ignore_eos=True,
                    logprobs=20,
                ) as stream:
                    await anext(stream)
                    link.change(Weather(bandwidth=1))
                    async for _ in stream:
                        pass
            except PixtralError:
                pass
            await asyncio.sleep(max(0.0, begun + SLOW_SECONDS + 2 - time.monotonic()))
