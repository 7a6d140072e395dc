"""Attacks by image files."""

import asyncio

import grpc

from pixtral.v1 import chat_pb2
from pixtral_client import PixtralError, UploadedImage
from tests.hostile.attack import Ground, attack


@attack("2", "what a file inflates to is bounded before anything of it is inflated")
async def profiles_that_inflate(ground: Ground) -> None:
    """PNGs that cost ten seconds of a processor each, and are named again and again."""
    async with ground.client() as client:
        named: list[UploadedImage] = []
        for file in ground.payloads.profiles:
            try:
                named.append(await client.put_image(file))
            except PixtralError as error:
                ground.came[f"PutImage: {error.code.name}"] += 1

        async def ask() -> None:
            content = [*named, "What is this?"]
            await ground.counted(client.chat([{"role": "user", "content": content}], max_tokens=1))

        if named:
            await ground.again(ask, 0.5)


@attack("3", "pixels that are being decoded are bounded together, and take little memory each")
async def large_pictures(ground: Ground) -> None:
    """Files of a few kilobytes that are 64 million pixels each, four in a request."""
    async with ground.client() as client:

        async def ask() -> None:
            content = [*ground.payloads.large, "What are these?"]
            await ground.counted(client.chat([{"role": "user", "content": content}], max_tokens=1))

        await asyncio.gather(*(ask() for _ in range(3)))


@attack("9", "tenants take turns at the encoder", seconds=5.0)
async def many_large_pictures(ground: Ground) -> None:
    """Six requests of sixteen pictures of 36 million pixels."""
    async with ground.client() as client:

        async def ask(number: int) -> None:
            pictures = ground.payloads.many[16 * number : 16 * number + 16]
            content = [*pictures, "What are these?"]
            await ground.counted(client.chat([{"role": "user", "content": content}], max_tokens=1))

        await asyncio.gather(*(ask(number) for number in range(6)))


@attack("11", "the loop goes on while headers are read")
async def headers_of_many_segments(ground: Ground) -> None:
    """Sixteen JPEGs in a request whose size stands behind 19,900 segments."""
    request = chat_pb2.CountTokensRequest()
    message = request.chat.messages.add(role=chat_pb2.ROLE_USER)
    for number in range(16):
        file = ground.payloads.segments + bytes([number])
        message.content.add().image.data = file
    message.content.add().text = "What are these?"
    data = request.SerializeToString()
    async with ground.channel() as channel:
        count: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/pixtral.v1.ChatService/CountTokens"
        )

        async def ask() -> None:
            await ground.counted(count(data, metadata=ground.metadata, timeout=30))

        await ground.again(ask, 0.1)
