"""Attacks by messages of gRPC and bodies of HTTP, and by what a key allows."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress

import grpc

from pixtral.v1 import chat_pb2
from pixtral_client import AsyncClient, PixtralError
from tests.hostile.attack import HOSTILE, Ground, attack
from tests.hostile.connections import open_at, sockets
from tests.hostile.stack import key_of, second_key_of, tenants_toml
from tests.support.http2 import (
    DATA,
    END_HEADERS,
    HEADERS,
    call_headers,
    connect,
    frame,
    grpc_message,
)

CHAT = "/pixtral.v1.ChatService"
MIB = 1 << 20
COMPLETIONS = "/v1/chat/completions"
# A gateway looks at its file every two seconds.
REVOKED_SECONDS = 8.0
FEW_PERMITS, MANY_TENANTS = 16, 20


def body_of(content: str, **more: object) -> bytes:
    request = {"model": "pixtral-mini", "messages": [{"role": "user", "content": content}], **more}
    return json.dumps(request, ensure_ascii=False).encode()


@attack("8", "what is packed is not taken", seconds=8.0)
async def packed_ballast(ground: Ground) -> None:
    """60 MiB in a field that nobody knows, beside each of twenty long answers: 61 KB to send."""
    message = grpc_message(ground.payloads.packed_ballast, is_compressed=True)
    block = call_headers(
        f"{CHAT[1:]}/StreamComplete",
        ground.target,
        ("grpc-encoding", "gzip"),
        *ground.metadata,
    )

    async def one() -> None:
        async with connect(ground.target) as connection:
            pieces = [message[at : at + 16_000] for at in range(0, len(message), 16_000)]
            with suppress(OSError):
                await connection.send(
                    frame(HEADERS, END_HEADERS, 1, block),
                    *(frame(DATA, 0, 1, piece) for piece in pieces[:-1]),
                    frame(DATA, 0x1, 1, pieces[-1]),
                )
                ground.came["sent"] += 1
            while not (ground.is_over or connection.is_closed or connection.seen["ended"]):
                await asyncio.sleep(0.1)
            ground.came["ended early"] += not ground.is_over

    await asyncio.gather(*(one() for _ in range(20)))


@attack(
    "8", "an answer keeps what it needs of its request, and a message counts whole", seconds=6.0
)
async def ballast(ground: Ground) -> None:
    async with ground.channel() as channel:
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            f"{CHAT}/StreamComplete"
        )

        async def one() -> None:
            async def read() -> None:
                async for _ in method(
                    ground.payloads.ballast, metadata=ground.metadata, timeout=60
                ):
                    pass

            await ground.counted(read())

        await asyncio.gather(*(one() for _ in range(20)))


@attack("8", "an answer keeps nothing of fields that nobody knows", seconds=6.0)
async def ballast_in_json(ground: Ground) -> None:
    body = body_of("Tell me a story.", max_tokens=4000, ignore_eos=True, padding="x" * 50 * MIB)
    await asyncio.gather(*(ground.post(COMPLETIONS, body) for _ in range(12)))


@attack("10", "a tenant has a share of the uploads, and slow senders are ended")
async def uploads_that_do_not_end(ground: Ground) -> None:
    piece = bytes(256 << 10)
    async with ground.channel() as channel:
        put: grpc.aio.StreamUnaryMultiCallable[chat_pb2.PutImageRequest, bytes] = (
            channel.stream_unary(
                f"{CHAT}/PutImage", request_serializer=chat_pb2.PutImageRequest.SerializeToString
            )
        )

        async def pieces(nbytes: int) -> AsyncIterator[chat_pb2.PutImageRequest]:
            for at in range(0, nbytes, len(piece)):
                yield chat_pb2.PutImageRequest(data=piece[: nbytes - at])
            while not ground.is_over:
                await asyncio.sleep(0.5)

        sizes = [20 * MIB - 1] * 12 + [16 * MIB + 12]
        await asyncio.gather(
            *(
                ground.counted(put(pieces(nbytes), metadata=ground.metadata, timeout=60))
                for nbytes in sizes
            )
        )


@attack("10", "uploads that send nothing leave permits to others")
async def uploads_that_say_nothing(ground: Ground) -> None:
    async with ground.channel() as channel:
        put: grpc.aio.StreamUnaryMultiCallable[chat_pb2.PutImageRequest, bytes] = (
            channel.stream_unary(
                f"{CHAT}/PutImage", request_serializer=chat_pb2.PutImageRequest.SerializeToString
            )
        )

        async def nothing() -> AsyncIterator[chat_pb2.PutImageRequest]:
            while not ground.is_over:
                await asyncio.sleep(0.5)
            return
            yield

        await asyncio.gather(
            *(ground.counted(put(nothing(), metadata=ground.metadata)) for _ in range(256))
        )


@attack("11", "the loop goes on while JSON is parsed")
async def json_of_many_values(ground: Ground) -> None:
    values = b",".join([b'{"a":1}'] * 500_000)
    body = body_of("Hello")[:-1] + b', "padding": [' + values + b"]}"
    await ground.again(lambda: ground.post(COMPLETIONS, body), 0.5)


@attack("11", "the loop goes on while JSON is parsed")
async def json_of_long_text(ground: Ground) -> None:
    body = body_of("é" * (30 * MIB))
    await ground.again(lambda: ground.post(COMPLETIONS, body), 1.0)


@attack("12", "a text that the tokenizer cannot take is the request's own fault")
async def a_million_spaces(ground: Ground) -> None:
    text = " " * 1_000_000
    await ground.post(COMPLETIONS, body_of(text, max_tokens=1))
    async with ground.client() as client:
        for character in " \t\u00a0":
            await ground.counted(
                client.chat([{"role": "user", "content": character * 1_000_000}], max_tokens=1)
            )


@attack("5", "a tenant that holds nothing is let in, however many there are", seconds=20.0)
async def more_tenants_than_permits(ground: Ground) -> None:
    """Three quarters of a gateway's permits are one tenant's; then the others ask."""
    tenants = [HOSTILE, *(f"t{number}" for number in range(MANY_TENANTS - 1))]
    limit = f"--max-concurrent-requests={FEW_PERMITS}"
    with ground.stack.second_gateway(limit, tenants=tenants) as gateway:
        await asyncio.to_thread(gateway.until_ready)
        async with ground.client(gateway.target) as eve:
            streams = [
                await eve.stream(
                    [{"role": "user", "content": f"Story {number}, please."}],
                    max_tokens=4000,
                    ignore_eos=True,
                )
                for number in range(FEW_PERMITS)
            ]
            held = 0
            for stream in streams:
                with suppress(PixtralError):
                    await anext(stream)
                    held += 1
            ground.came["held by one"] = held
            for tenant in tenants[1:4]:
                async with AsyncClient(
                    gateway.target, api_key=key_of(tenant), max_retries=0
                ) as client:
                    try:
                        await client.chat(
                            [{"role": "user", "content": "Hello"}], max_tokens=1, timeout=30
                        )
                        ground.came["let in"] += 1
                    except PixtralError as error:
                        ground.said.append(f"another tenant was told {error.code.name}")


@attack("16", "a stream ends soon after its key is revoked", seconds=REVOKED_SECONDS)
async def a_key_that_is_revoked(ground: Ground) -> None:
    file = ground.stack.tenants
    before = file.read_text("utf-8")
    key = second_key_of(HOSTILE)
    try:
        async with (
            AsyncClient(ground.target, api_key=key, max_retries=0) as client,
            await client.stream(
                [{"role": "user", "content": "Tell me a story."}],
                max_tokens=30_000,
                ignore_eos=True,
            ) as stream,
        ):
            await anext(stream)
            file.write_text(tenants_toml((HOSTILE, "bob"), without=key), "utf-8")
            async for _ in stream:
                # It goes on and on, and must not.
                if ground.is_over:
                    ground.said.append(f"a stream went on {REVOKED_SECONDS:g} s after its key")
                    return
                # Slowly: it is to last.
                await asyncio.sleep(0.02)
            ground.came["came to its end"] += 1
    except PixtralError as error:
        ground.came[error.code.name] += 1
    finally:
        file.write_text(before, "utf-8")


@attack("held before", "a method without a key is refused before its message")
async def messages_without_a_key(ground: Ground) -> None:
    async with ground.channel() as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"{CHAT}/Complete"
        )

        async def ask() -> None:
            try:
                await method(ground.payloads.ballast, timeout=30)
            except grpc.RpcError as error:
                ground.came[error.code().name] += 1

        await ground.again(ask, 0.25)


@attack("held before", "a body without a key is refused before it is read")
async def bodies_without_a_key(ground: Ground) -> None:
    head = (
        f"POST {COMPLETIONS} HTTP/1.1\r\nhost: localhost\r\n"
        f"content-type: application/json\r\ncontent-length: {60 * MIB}\r\n\r\n"
    ).encode()
    async with sockets() as opened:

        async def one() -> None:
            _, writer = await open_at(ground.http_target)
            opened.append(writer)
            with suppress(OSError):
                writer.write(head)
                for _ in range(59):
                    writer.write(bytes(MIB))
                    await writer.drain()
            ground.came["sent"] += 1

        await asyncio.gather(*(one() for _ in range(20)))
