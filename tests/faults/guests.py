"""Clients that behave badly."""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pixtral.v1 import chat_pb2
from pixtral_client import AsyncClient, PixtralError
from pixtral_client.requests import chat_request
from tests.faults.stack import HOSTILE, Stack, key_of, next_key_of
from tests.support.stack.proxy import Link, Proxy, Weather

STREAMS = 2000
SLOW_SECONDS = 12.0
PATIENCE_SECONDS = 60.0
HOSTILE_SECONDS = 6.0


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


async def be_hostile(stack: Stack) -> None:
    """A tenant asks for as much as its key allows, in every way at once; see `tests.hostile`."""
    key = key_of(HOSTILE)
    async with (
        AsyncClient(
            stack.address("gateway-0"), tls=stack.tls, api_key=key, max_retries=0
        ) as client,
        grpc.aio.secure_channel(stack.address("gateway-0"), stack.tls.credentials()) as channel,
    ):
        put: grpc.aio.StreamUnaryMultiCallable[chat_pb2.PutImageRequest, bytes]
        put = channel.stream_unary(
            "/pixtral.v1.ChatService/PutImage",
            request_serializer=chat_pb2.PutImageRequest.SerializeToString,
        )
        over = asyncio.Event()

        async def unfinished(nbytes: int) -> AsyncIterator[chat_pb2.PutImageRequest]:
            for _ in range(nbytes >> 20):
                yield chat_pb2.PutImageRequest(data=bytes(1 << 20))
            await over.wait()

        async def many_choices() -> None:
            await client.chat(
                [{"role": "user", "content": "Good morning!"}],
                n=64,
                max_tokens=200,
                temperature=1,
                ignore_eos=True,
            )

        async def long_prompt() -> None:
            text = "one two three four five six seven eight nine ten " * 800
            await client.chat([{"role": "user", "content": text}], max_tokens=1)

        async def large_pictures() -> None:
            content = [*(_flat(6000, number) for number in range(4)), "What are these?"]
            await client.chat([{"role": "user", "content": content}], max_tokens=1)

        acts = [many_choices(), long_prompt(), large_pictures(), long_prompt()]
        metadata = (("authorization", f"Bearer {key}"),)

        async def upload() -> None:
            await put(unfinished(19 << 20), metadata=metadata)

        acts += [upload() for _ in range(13)]
        tasks = [asyncio.ensure_future(act) for act in acts]
        await asyncio.sleep(HOSTILE_SECONDS)
        for task in tasks:
            task.cancel()
        over.set()
        # Refused or cancelled: that is the service's affair.
        await asyncio.gather(*tasks, return_exceptions=True)


def _flat(side: int, number: int) -> bytes:
    """A file of a few kilobytes, of millions of pixels."""
    out = io.BytesIO()
    note = PngInfo()
    note.add_text("number", f"{number} {time.monotonic_ns()}")
    Image.new("1", (side, side)).save(out, "PNG", pnginfo=note)
    return out.getvalue()


async def replace_keys(stack: Stack) -> None:
    """Every tenant gets a second key, which works soon, and loses it, which is seen as soon."""

    async def until(code: grpc.StatusCode | None) -> None:
        for number in range(len(stack.of("gateway"))):
            async with AsyncClient(
                stack.address(f"gateway-{number}"),
                tls=stack.tls,
                api_key=next_key_of(stack.tenants[0]),
            ) as client:
                while True:
                    try:
                        await client.models(timeout=PATIENCE_SECONDS)
                        seen = None
                    except PixtralError as error:
                        seen = error.code
                    if seen == code:
                        break
                    await asyncio.sleep(0.2)

    async with asyncio.timeout(PATIENCE_SECONDS):
        try:
            stack.write_tenants(lambda tenant: [key_of(tenant), next_key_of(tenant)])
            await until(None)
        finally:
            stack.write_tenants(lambda tenant: [key_of(tenant)])
        await until(grpc.StatusCode.UNAUTHENTICATED)
