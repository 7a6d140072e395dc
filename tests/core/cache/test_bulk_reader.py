"""Values read past redis-py's parser, from a real Redis and from what is none."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from pixtral_core.cache.bulk_reader import ValueReader
from pixtral_core.cache.receiving import PIECE_BYTES, new_memory
from tests.support.certificate_authority import Authority
from tests.support.redis_server import RedisServer
from tests.support.stack.proxy import Link, Proxy, Weather

LARGE = 8 << 20
SECONDS = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(requirepass="secret") as server:
        yield server


@asynccontextmanager
async def reading(url: str, max_connections: int = 4) -> AsyncIterator[ValueReader]:
    reader = ValueReader.from_url(url, max_connections=max_connections)
    try:
        yield reader
    finally:
        reader.close()


class Received:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.memories: list[memoryview] = []

    def memory(self, size: int) -> memoryview:
        self.memories.append(new_memory(size))
        self._pieces = bytearray()
        return self.memories[-1]

    def piece(self, piece: memoryview) -> None:
        self._pieces += piece

    def end(self, value: memoryview) -> bytes:
        assert self._pieces == value
        return bytes(value)


async def value_of(reader: ValueReader, key: str) -> bytes | None:
    return await reader.get(key, SECONDS, Received())


def put(server: RedisServer, **values: bytes) -> None:
    with closing(server.client()) as client:
        client.mset(values)


@pytest.mark.parametrize(
    "size", [1, 50, 70_000, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, LARGE]
)
async def test_values_come_whole_and_one_after_another(server: RedisServer, size: int) -> None:
    values = [os.urandom(size) for _ in range(3)]
    put(server, a=values[0], b=values[1], c=values[2])
    async with reading(server.url, max_connections=1) as reader:
        for key, value in zip("abc", values, strict=True):
            assert await value_of(reader, key) == value
        assert await value_of(reader, "absent") is None
        assert await value_of(reader, "a") == values[0]


async def test_the_value_is_in_the_memory_that_is_given(server: RedisServer) -> None:
    put(server, a=b"value")
    received = Received()
    async with reading(server.url) as reader:
        assert await reader.get("a", SECONDS, received) == b"value"
    assert [bytes(each) for each in received.memories] == [b"value\r\n"]


class BreakingOnce(Received):
    """Breaks the connection as the value comes, the first time."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        self._loop = asyncio.get_running_loop()

    def memory(self, size: int) -> memoryview:
        if not self.memories:
            self._loop.call_soon_threadsafe(self._link.change, Weather(is_cut=True))
            self._loop.call_soon_threadsafe(self._link.change, Weather())
        return super().memory(size)


async def test_after_a_connection_that_has_ended_it_begins_anew(server: RedisServer) -> None:
    value = os.urandom(8 * LARGE)
    put(server, a=value)
    link = Link("redis")
    received = BreakingOnce(link)
    async with Proxy(link) as proxy:
        proxy.target = f"127.0.0.1:{server.port}"
        async with reading(server.url_at(proxy.address)) as reader:
            assert await reader.get("a", SECONDS, received) == value
    assert len(received.memories) == 2


async def test_what_redis_refuses_breaks_nothing(server: RedisServer) -> None:
    with closing(server.client()) as client:
        client.delete("list")
        client.rpush("list", "a")
    put(server, a=b"value")
    async with reading(server.url, max_connections=1) as reader:
        with pytest.raises(ResponseError, match="refused"):
            await reader.get("list", SECONDS, Received())
        assert await value_of(reader, "a") == b"value"


async def test_a_newer_protocol_that_the_address_asks_for_changes_nothing(
    server: RedisServer,
) -> None:
    put(server, a=b"value")
    async with reading(f"{server.url}?protocol=3") as reader:
        assert await value_of(reader, "a") == b"value"
        assert await value_of(reader, "absent") is None


async def test_by_tls_and_over_a_unix_socket(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    certificate, private_key = authority.issue("server")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, private_key)
    path, value = tmp_path / "redis.sock", os.urandom(LARGE)

    with RedisServer(requirepass="secret", unixsocket=str(path)) as server:
        put(server, a=value)

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            theirs, ours = await asyncio.open_connection("127.0.0.1", server.port)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(copy(reader, ours))
                ways.create_task(copy(theirs, writer))

        tls = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
        port = tls.sockets[0].getsockname()[1]
        url = f"rediss://:secret@127.0.0.1:{port}?ssl_ca_certs={authority.ca}"
        async with tls, reading(url) as reader:
            assert await value_of(reader, "a") == value
        async with reading(f"unix://:secret@{path}") as reader:
            assert await value_of(reader, "a") == value


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def test_a_value_that_comes_too_slowly_is_given_up_and_its_rest_is_nobodys(
    server: RedisServer,
) -> None:
    values = {"a": os.urandom(LARGE), "b": os.urandom(LARGE)}
    put(server, **values)
    link = Link("redis")
    async with Proxy(link) as proxy:
        proxy.target = f"127.0.0.1:{server.port}"
        async with reading(server.url_at(proxy.address), max_connections=1) as reader:
            assert await value_of(reader, "a") == values["a"]
            link.change(Weather(bandwidth=1 << 10))
            # All of it would take two hours.
            getting = asyncio.create_task(reader.get("a", 0.3, Received()))
            await asyncio.wait((getting,), timeout=SECONDS)
            assert getting.done()
            assert isinstance(getting.exception(), (RedisError, TimeoutError))
            link.change(Weather())
            assert await value_of(reader, "b") == values["b"]


async def test_a_connection_that_breaks_within_a_value(server: RedisServer) -> None:
    value = os.urandom(LARGE)
    put(server, a=value)
    link = Link("redis")
    async with Proxy(link) as proxy:
        proxy.target = f"127.0.0.1:{server.port}"
        async with reading(server.url_at(proxy.address)) as reader:
            link.change(Weather(reset_after=LARGE // 2))
            with pytest.raises((RedisError, OSError)):
                await reader.get("a", SECONDS, Received())
            link.change(Weather())
            assert await value_of(reader, "a") == value


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b":5\r\n$5\r\nval",
        b":5\r\n$4\r\nvalu\r\n",
        b":5\r\n$6\r\nvalues\r\n",
        b":5\r\n+value\r\n",
        b":abc\r\n",
        b":-2\r\n",
        b":999999999999\r\n",
        b"$5\r\nvalue\r\n",
        b"+OK\r\n",
        b"x" * 100_000,
        b"\r\n",
    ],
    ids=lambda reply: str(reply[:20]),
)
async def test_what_is_no_reply_is_an_error_of_the_connection(reply: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if line == b"STRLEN\r\n":
                writer.write(reply)
                break
            # The handshake of redis-py.
            if line.startswith(b"*"):
                writer.write(b"+OK\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, reading(f"redis://127.0.0.1:{port}") as reader:
        with pytest.raises((RedisConnectionError, ConnectionError)):
            await reader.get("a", SECONDS, Received())


class Begun(Received):
    """Says when a value begins to come."""

    def __init__(self) -> None:
        super().__init__()
        self.event = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def memory(self, size: int) -> memoryview:
        self._loop.call_soon_threadsafe(self.event.set)
        return super().memory(size)


async def test_closed_it_ends_what_is_being_read(server: RedisServer) -> None:
    put(server, a=os.urandom(LARGE))
    link = Link("redis")
    async with Proxy(link) as proxy, asyncio.timeout(SECONDS):
        proxy.target = f"127.0.0.1:{server.port}"
        async with reading(server.url_at(proxy.address)) as reader:
            link.change(Weather(bandwidth=1 << 16))
            begun = Begun()
            hanging = asyncio.create_task(reader.get("a", 600.0, begun))
            await begun.event.wait()
            reader.close()
            with pytest.raises((RedisError, OSError)):
                await hanging
