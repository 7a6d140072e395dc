"""Attacks by connections and what is sent on them, most of them without a key."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import grpc

from tests.hostile.attack import HOSTILE, Ground, attack
from tests.hostile.stack import key_of
from tests.support.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    call_headers,
    connect,
    frame,
    grpc_message,
)

HEALTH = "grpc.health.v1.Health"
CANCEL = struct.pack(">I", 8)
# Frames at once, and seconds between bursts: one sender does this without any effort.
BURST, BURST_SECONDS = 500, 0.01
RESETS = 20
# More than a process may have files, unless it asks for more.
SILENT = 1100
SCRAPES, SCRAPE_SECONDS = 150, 2.5
# A few of a metrics server's own, and one for each scrape under way.
MOST_THREADS = 40
# As many of the largest as a gateway once read at once, to their last few bytes.
BODIES, BODY, LAST_BYTES = 12, (64 << 20) - 1, 6


@asynccontextmanager
async def sockets() -> AsyncIterator[list[asyncio.StreamWriter]]:
    """Those that are added are closed in the end."""
    opened: list[asyncio.StreamWriter] = []
    try:
        yield opened
    finally:
        for writer in opened:
            writer.transport.abort()


async def open_at(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def _packed(ground: Ground, method: str, every: float, most: int) -> None:
    """Sends the packed message so often; it fits into a stream's first window."""
    async with AsyncExitStack() as stack:
        message = grpc_message(ground.payloads.names, is_compressed=True)
        for _ in range(most):
            if ground.is_over:
                return
            connection = await stack.enter_async_context(connect(ground.target))
            block = call_headers(method, ground.target, ("grpc-encoding", "gzip"))
            stream = connection.stream()
            pieces = [message[at : at + 16_384] for at in range(0, len(message), 16_384)]
            with suppress(OSError):
                await connection.send(
                    frame(HEADERS, END_HEADERS, stream, block),
                    *(frame(DATA, 0, stream, piece) for piece in pieces[:-1]),
                    frame(DATA, 0x1, stream, pieces[-1]),
                )
            ground.came["sent"] += 1
            await asyncio.sleep(every)
        while not ground.is_over:
            await asyncio.sleep(0.1)


@attack("1", "health takes kilobytes, and nothing that is packed")
async def packed_names_to_check(ground: Ground) -> None:
    await _packed(ground, f"{HEALTH}/Check", 0.5, 100)


@attack("1", "health takes kilobytes, and watches only what is served")
async def packed_names_to_watch(ground: Ground) -> None:
    await _packed(ground, f"{HEALTH}/Watch", 0.2, 4)


@attack("1", "reflection takes kilobytes, and nothing that is packed")
async def packed_names_to_reflection(ground: Ground) -> None:
    method = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    await _packed(ground, method, 0.5, 100)


@attack("1", "the bytes of messages that are being received are bounded")
async def large_names_to_check(ground: Ground) -> None:
    """The same unpacked, which no limit on packing stops."""
    message = b"\x0a\xc0\xff\xff\x1f" + b"a" * ((64 << 20) - 64)
    async with ground.channel() as channel:
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{HEALTH}/Check"
        )

        async def ask() -> None:
            await ground.counted(check(message, timeout=30))

        await ground.again(ask, 0.5)


@attack("4", "a tenant has a share of the bodies, and slow senders are ended")
async def bodies_that_do_not_end(ground: Ground) -> None:
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
        f"authorization: Bearer {key_of(HOSTILE)}\r\ncontent-type: application/json\r\n"
        f"content-length: {BODY}\r\n\r\n"
    ).encode()
    piece = b" " * (1 << 20)
    async with sockets() as opened:

        async def stall() -> None:
            _, writer = await open_at(ground.http_target)
            opened.append(writer)
            writer.write(head)
            left = BODY - LAST_BYTES
            try:
                while left:
                    writer.write(piece[:left])
                    left -= min(left, len(piece))
                    await writer.drain()
                ground.came["held"] += 1
                for _ in range(LAST_BYTES - 1):
                    await asyncio.sleep(1)
                    writer.write(b" ")
                    await writer.drain()
                while not ground.is_over:
                    await asyncio.sleep(0.1)
            except OSError:
                ground.came["closed"] += 1

        await asyncio.gather(*(stall() for _ in range(BODIES)))


@attack("13", "a process raises its soft limit on files")
async def connections_that_say_nothing(ground: Ground) -> None:
    async with sockets() as opened:
        for number in range(SILENT):
            try:
                async with asyncio.timeout(5):
                    _, writer = await open_at(ground.http_target if number % 2 else ground.target)
            except (OSError, TimeoutError):
                ground.came["refused"] += 1
            else:
                opened.append(writer)
                ground.came["open"] += 1
        while not ground.is_over:
            await asyncio.sleep(0.1)


@attack("14", "connections to the metrics have a deadline and a bound")
async def scrapes_that_say_nothing(ground: Ground) -> None:
    before = ground.stack.threads()
    async with sockets() as opened:

        async def connect_once(address: str) -> None:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(SCRAPE_SECONDS):
                    _, writer = await open_at(address)
                opened.append(writer)

        await asyncio.gather(
            *(
                connect_once(address.metrics)
                for address in ground.stack.addresses.values()
                for _ in range(SCRAPES)
            )
        )
        for tier, threads in ground.stack.threads().items():
            more = threads - before[tier]
            ground.came[f"threads of the {tier}"] = more
            if more > MOST_THREADS:
                ground.said.append(f"{SCRAPES} connections gave the {tier} {more} threads")
        while not ground.is_over:
            await asyncio.sleep(0.1)


async def _frames(ground: Ground, made: list[bytes]) -> None:
    """One connection sends them for a second, and another when it is closed."""
    loop = asyncio.get_running_loop()
    until = loop.time() + ground.seconds / 8
    while loop.time() < until:
        async with connect(ground.target) as connection:
            with suppress(OSError):
                while loop.time() < until and not connection.is_closed:
                    await connection.send(*made)
                    ground.came["frames"] += len(made)
                    await asyncio.sleep(BURST_SECONDS)
        ground.came["connections"] += 1


@attack("held before", "frames that nobody needs are cheap, or end the connection", seconds=5.0)
async def floods_of_frames(ground: Ground) -> None:
    block = call_headers(f"{HEALTH}/Watch", ground.target)
    await _frames(ground, [frame(PING, 0, 0, bytes(8))] * BURST)
    await _frames(ground, [frame(SETTINGS, 0, 0)] * BURST)
    await _frames(ground, [frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1))] * BURST)
    await _frames(
        ground,
        [frame(HEADERS, 0, 1, block), *[frame(CONTINUATION, 0, 1)] * BURST],
    )
    await _frames(
        ground,
        [frame(HEADERS, END_HEADERS, 1, block), *[frame(DATA, 0, 1)] * BURST],
    )


async def _resets(ground: Ground, block: bytes) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + ground.seconds / 2
    while loop.time() < until:
        async with connect(ground.target) as connection:
            with suppress(OSError):
                while loop.time() < until and not connection.is_closed:
                    frames = []
                    for _ in range(RESETS):
                        stream = connection.stream()
                        frames.append(frame(HEADERS, END_HEADERS, stream, block))
                        frames.append(frame(RST_STREAM, 0, stream, CANCEL))
                    await connection.send(*frames)
                    ground.came["streams"] += RESETS
                    await asyncio.sleep(BURST_SECONDS)
        ground.came["connections"] += 1


@attack("held before", "streams that are reset cost their sender as much as the gateway")
async def streams_that_are_reset(ground: Ground) -> None:
    authorization = ("authorization", f"Bearer {key_of(HOSTILE)}")
    await _resets(ground, call_headers(f"{HEALTH}/Watch", ground.target))
    await _resets(
        ground,
        call_headers("pixtral.v1.ChatService/StreamComplete", ground.target, authorization),
    )
