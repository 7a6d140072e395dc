"""A TCP proxy between two tiers, with the faults of a network.

It runs in its user's event loop and needs no privileges: it does to two sockets what a network does
to a connection.
"""

import asyncio
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Self

PIECE_BYTES = 1 << 16
# Pieces in transit in one direction; when there are more, the sender waits.
PIECES = 16
# uvloop raises RuntimeError for a transport that is already closed.
_BROKEN = (OSError, RuntimeError)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Weather:
    """The faults of a link; the default has none.

    Attributes:
        latency: delay of each byte, in seconds.
        bandwidth: bytes per second in each direction; None for no limit.
        is_cut: whether the proxy resets all connections, new ones too.
        is_lost: whether bytes get lost silently: the sender gets no FIN and no RST.
        lost_way: the only direction that loses bytes: "there", from the client, or "back".
        reset_after: bytes in both directions after which the proxy resets a connection.
        flip_every: the proxy flips one bit in about this many bytes.
    """

    latency: float = 0.0
    bandwidth: int | None = None
    is_cut: bool = False
    is_lost: bool = False
    lost_way: Literal["there", "back"] | None = None
    reset_after: int | None = None
    flip_every: int | None = None

    def loses(self, way: str) -> bool:
        return self.is_lost or self.lost_way == way


@dataclass(slots=True, eq=False)
class Connection:
    sockets: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    passed: int = 0
    # The directions in which bytes were lost.
    holes: set[str] = field(default_factory=set)

    @property
    def is_holed(self) -> bool:
        return bool(self.holes)

    def reset(self) -> None:
        for writer in self.sockets:
            with suppress(OSError, AttributeError):
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
                )
            writer.transport.abort()


@dataclass(slots=True, eq=False)
class Link:
    """The connections between two tiers, and the faults between them."""

    name: str
    weather: Weather = field(default_factory=Weather)
    connections: set[Connection] = field(default_factory=set)

    def change(self, weather: Weather) -> None:
        """Sets the faults from now on.

        Connections stay, unless the link is cut. When a loss ends, connections that lost bytes are
        reset, because their other end no longer knows them.
        """
        self.weather = weather
        for connection in tuple(self.connections):
            if weather.is_cut or any(not weather.loses(way) for way in connection.holes):
                connection.reset()


# The link of each connection, by the client's port.
Classify = Callable[[int], Awaitable[Link]]


class Proxy:
    """Listens on a free port and forwards to `target` (host:port), which may change.

    If `source` is given, an address of this machine, it connects from there.
    """

    def __init__(self, link: Link | Classify, seed: int = 0, *, source: str | None = None) -> None:
        self._link = link
        self._from = None if source is None else (source, 0)
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.target: str | None = None
        self.address = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:
            # The proxy is closing. asyncio would log the cancellation as an error.
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = self._link
        if not isinstance(link, Link):
            link = await link(writer.get_extra_info("peername")[1])
        if self.target is None or link.weather.is_cut:
            Connection((writer, writer)).reset()
            return
        host, _, port = self.target.rpartition(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(
                host, int(port), local_addr=self._from
            )
        except OSError:
            Connection((writer, writer)).reset()
            return
        connection = Connection((writer, far_writer))
        link.connections.add(connection)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._forward(link, connection, reader, far_writer, "there"))
                both.create_task(self._forward(link, connection, far_reader, writer, "back"))
        except* _BROKEN:
            connection.reset()
        finally:
            link.connections.discard(connection)
            far_writer.transport.abort()

    async def _forward(
        self,
        link: Link,
        connection: Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        way: str,
    ) -> None:
        """Forwards one direction to its end; its two tasks keep latency from limiting the rate."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES)
        loop = asyncio.get_running_loop()

        async def receive() -> None:
            while piece := await reader.read(PIECE_BYTES):
                if link.weather.loses(way) or way in connection.holes:
                    connection.holes.add(way)
                    continue
                await under_way.put((loop.time() + link.weather.latency, piece))
            await under_way.put((loop.time(), b""))

        async def send() -> None:
            while True:
                due, piece = await under_way.get()
                await asyncio.sleep(due - loop.time())
                if not piece:
                    break
                await self._send(link, connection, writer, piece)
            # After a loss, the receiver does not see the end of the stream either.
            if way not in connection.holes and writer.can_write_eof():
                with suppress(*_BROKEN):
                    writer.write_eof()

        async with asyncio.TaskGroup() as both:
            both.create_task(receive())
            both.create_task(send())

    async def _send(
        self, link: Link, connection: Connection, writer: asyncio.StreamWriter, piece: bytes
    ) -> None:
        weather = link.weather
        if weather.flip_every is not None:
            piece = self._flipped(piece, weather.flip_every)
        rest = memoryview(piece)
        while rest:
            weather = link.weather
            step = len(rest)
            if weather.bandwidth is not None:
                step = min(step, max(1, weather.bandwidth // 20))
            if weather.reset_after is not None:
                step = min(step, max(0, weather.reset_after - connection.passed))
                if step == 0:
                    raise ConnectionResetError
            writer.write(bytes(rest[:step]))
            await writer.drain()
            connection.passed += step
            if weather.bandwidth is not None:
                await asyncio.sleep(step / weather.bandwidth)
            rest = rest[step:]

    def _flipped(self, piece: bytes, every: int) -> bytes:
        data = bytearray(piece)
        at = int(self._random.expovariate(1 / every))
        while at < len(data):
            data[at] ^= 1 << self._random.randrange(8)
            at += 1 + int(self._random.expovariate(1 / every))
        return bytes(data)
