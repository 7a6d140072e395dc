"""The proxy does to connections what it is told to, and else nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Literal

import pytest

from tests.support.stack import proxy as proxy_module
from tests.support.stack.proxy import Link, Proxy, Weather

MESSAGE = bytes(range(256)) * 1024
PATIENCE = 60.0
HOUR = 3600.0

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def echo() -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(1 << 16):
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.fixture
async def link() -> AsyncIterator[tuple[Link, Proxy]]:
    link = Link("there and back")
    async with AsyncExitStack() as stack:
        target = await stack.enter_async_context(echo())
        proxy = await stack.enter_async_context(Proxy(link))
        proxy.target = target
        yield link, proxy


async def connect(proxy: Proxy) -> Pair:
    host, _, port = proxy.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def said(pair: Pair, message: bytes = MESSAGE) -> bytes:
    """What comes back of a message."""
    reader, writer = pair
    writer.write(message)
    async with asyncio.timeout(PATIENCE):
        return await reader.readexactly(len(message))


async def test_what_passes_is_what_was_sent_to_the_end(link: tuple[Link, Proxy]) -> None:
    reader, writer = pair = await connect(link[1])
    assert await said(pair) == MESSAGE
    writer.write_eof()
    async with asyncio.timeout(PATIENCE):
        assert await reader.read() == b""
    writer.close()


async def test_a_cut_ends_what_is_there_and_what_comes_until_it_is_mended(
    link: tuple[Link, Proxy],
) -> None:
    pair = await connect(link[1])
    await said(pair)
    link[0].change(Weather(is_cut=True))
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await said(pair)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await said(await connect(link[1]))
    link[0].change(Weather())
    other = await connect(link[1])
    assert await said(other) == MESSAGE
    other[1].close()


async def test_what_is_lost_is_lost_in_silence(link: tuple[Link, Proxy]) -> None:
    reader, writer = pair = await connect(link[1])
    await said(pair)
    link[0].change(Weather(is_lost=True))
    writer.write(MESSAGE)
    (connection,) = link[0].connections
    async with asyncio.timeout(PATIENCE):
        while not connection.is_holed:
            await asyncio.sleep(0.01)
    assert not reader.at_eof()
    link[0].change(Weather())
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await said(pair)


@pytest.mark.parametrize("way", ["there", "back"])
async def test_what_is_lost_one_way_arrives_the_other(
    link: tuple[Link, Proxy], way: Literal["there", "back"]
) -> None:
    pair = await connect(link[1])
    await said(pair)
    (connection,) = link[0].connections
    link[0].change(Weather(lost_way=way))
    pair[1].write(MESSAGE)
    async with asyncio.timeout(PATIENCE):
        while not connection.is_holed:
            await asyncio.sleep(0.01)
    assert connection.holes == {way}
    # What was lost stays lost: the connection does not outlive it.
    link[0].change(Weather())
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await said(pair)


async def test_a_reset_comes_after_so_many_bytes(link: tuple[Link, Proxy]) -> None:
    link[0].change(Weather(reset_after=3000))
    reader, writer = pair = await connect(link[1])
    assert await said(pair, MESSAGE[:1000]) == MESSAGE[:1000]
    writer.write(MESSAGE)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        async with asyncio.timeout(PATIENCE):
            await reader.readexactly(2001)


async def test_flipped_bits_are_few_and_the_length_stays(link: tuple[Link, Proxy]) -> None:
    link[0].change(Weather(flip_every=1 << 14))
    pair = await connect(link[1])
    back = await said(pair)
    changed = sum(one != other for one, other in zip(back, MESSAGE, strict=True))
    assert 0 < changed < 200
    pair[1].close()


async def test_slow_links_are_slow_and_lose_nothing(
    link: tuple[Link, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(0)

    hurried = SimpleNamespace(**{**vars(asyncio), "sleep": sleep})
    monkeypatch.setattr(proxy_module, "asyncio", hurried)
    link[0].change(Weather(latency=HOUR, bandwidth=1024))
    pair = await connect(link[1])
    assert await said(pair, MESSAGE[:4096]) == MESSAGE[:4096]
    # There and back: an hour for each piece, and a second for each kibibyte.
    assert sum(each > HOUR / 2 for each in slept) >= 2
    assert sum(each for each in slept if each < HOUR / 2) == pytest.approx(2 * 4)
    pair[1].close()


async def test_links_of_one_port_are_told_apart_by_who_connects() -> None:
    links = [Link("ours"), Link("theirs")]
    chosen: dict[int, Link] = {}

    async def which(port: int) -> Link:
        async with asyncio.timeout(PATIENCE):
            while port not in chosen:
                await asyncio.sleep(0.01)
        return chosen[port]

    async with echo() as target, Proxy(which) as proxy:
        proxy.target = target
        pairs = [await connect(proxy) for _ in links]
        for pair, link in zip(pairs, links, strict=True):
            chosen[pair[1].get_extra_info("sockname")[1]] = link
        links[1].change(Weather(is_cut=True))
        assert await said(pairs[0]) == MESSAGE
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await said(pairs[1])
        pairs[0][1].close()
