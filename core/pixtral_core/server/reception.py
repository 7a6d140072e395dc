"""Receives the messages of a call, within bounds on memory and time."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import grpc

from pixtral_core.concurrency.shared_limit import SharedLimit
from pixtral_core.errors import DeadlineExceeded, ServingError
from pixtral_core.server.channel import MAX_MESSAGE_BYTES
from pixtral_core.server.socket_bytes import SocketBytes

# gRPC's classes are generic in their stubs alone.
if TYPE_CHECKING:
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext

# Most messages have arrived by then, and are not counted.
YOUNG_SECONDS: Final = 0.005
LOOK_SECONDS: Final = 0.05
# gRPC copies whole messages on the event loop, all that have arrived in one go: twenty of the
# largest would delay everybody else for a second. So a party may have this many young messages at
# once, and none begins while the party has sent more than a burst beyond its rate.
MOST_YOUNG: Final = 2
BURST_BYTES: Final = 16 << 20
BYTES_A_SECOND: Final = 256 << 20
# The time that it may take to find a connection.
UNKNOWN_SECONDS: Final = 1.0
# The slowest accepted sender: this many bytes in each period of this many seconds.
PACE_SECONDS: Final = 10.0
PACE_BYTES: Final = 160 << 10


class Pace:
    """Tells a slow attacker from a distant client."""

    def __init__(self) -> None:
        self._received = 0
        self._latest = monotonic() + PACE_SECONDS

    def receive(self, nbytes: int) -> None:
        self._received += nbytes
        if self._received >= PACE_BYTES:
            self._received, self._latest = 0, monotonic() + PACE_SECONDS

    def remaining(self) -> float:
        """Seconds until more must have come; 0 if too little has come."""
        return max(0.0, self._latest - monotonic())


def when_behind(pace: Pace) -> float:
    """The time of the event loop at which more must have come."""
    return asyncio.get_running_loop().time() + pace.remaining()


class Receiving(Protocol):
    """Counts the calls of one caller whose messages have not arrived."""

    receiving: int


class Incoming:
    """The messages that are being received. Together they have at most the bytes of `room`."""

    def __init__(self, room: SharedLimit) -> None:
        self.room = room
        self._sockets = SocketBytes()
        self._flows: dict[tuple[str, str], _Flow] = {}
        self._parties: dict[str, _Party] = {}

    @contextmanager
    def party(self, name: str) -> Iterator["_Party"]:
        """The party of a call that waits for a message."""
        party = self._parties.get(name)
        if party is None:
            party = self._parties[name] = _Party(name)
        party.calls += 1
        try:
            yield party
        finally:
            party.calls -= 1
            if not party.calls:
                del self._parties[name]

    @contextmanager
    def flow(self, peer: str, party: "_Party") -> Iterator["_Flow"]:
        """Another message comes from `peer`, as gRPC names it, and counts for `party`."""
        at = peer, party.name
        flow = self._flows.get(at)
        if flow is None:
            flow = self._flows[at] = _Flow(self.room, self._sockets, peer, party)
        number = flow.begin()
        try:
            yield flow
        finally:
            flow.end(number)
            if not flow.starts:
                del self._flows[at]


class _Party:
    """Begins a party's messages in their order, no faster than its rate allows.

    A message shows its size only while it arrives, so it is young until a part of it could have
    come.

    Attributes:
        calls: those that await a message, or their turn to.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0
        self._young = 0
        self._left = float(BURST_BYTES)
        self._counted = monotonic()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def begin(self) -> None:
        """Waits for a turn, which lasts until `end_youth`."""
        if not self._waiting and self._may_begin():
            self._young += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._give_turns()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.end_youth()
            raise

    def end_youth(self) -> None:
        self._young -= 1
        self._give_turns()

    def spend(self, nbytes: int) -> None:
        """Counts bytes that have arrived."""
        now = monotonic()
        refilled = self._left + (now - self._counted) * BYTES_A_SECOND
        self._left, self._counted = min(refilled, BURST_BYTES) - nbytes, now

    def _may_begin(self) -> bool:
        self.spend(0)
        return self._young < MOST_YOUNG and self._left >= 0

    def _give_turns(self) -> None:
        while self._waiting and self._may_begin():
            turn = self._waiting.popleft()
            if not turn.done():
                self._young += 1
                turn.set_result(None)
        if self._waiting and self._left < 0 and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(-self._left / BYTES_A_SECOND, self._after_a_while)

    def _after_a_while(self) -> None:
        self._timer = None
        self._give_turns()


class _Flow:
    """The messages over one connection for one party. Nothing distinguishes the calls of a
    connection.

    `starts` has, for each message, the bytes that had come before it: none for a new connection.
    """

    def __init__(self, room: SharedLimit, sockets: SocketBytes, peer: str, party: _Party) -> None:
        self.starts: dict[int, int] = {}
        self._room = room
        self._sockets = sockets
        self._peer = peer
        self._party = party
        self._began = monotonic()
        self._number = 0
        self._taken = 0

    def begin(self) -> int:
        self._number += 1
        self.starts[self._number] = self._sockets.received(self._peer) or 0
        return self._number

    def end(self, number: int) -> None:
        if self._taken:
            self._party.spend(max(0, self._size() - self._taken))
        del self.starts[number]
        nbytes = self._size() if self.starts and self._taken else 0
        if nbytes < self._taken:
            self._room.give_back(self._party.name, self._taken - nbytes)
            self._taken = nbytes

    def look(self) -> int:
        """Takes room for the bytes since the last look, and returns the total. Raises
        Overloaded."""
        nbytes = self._size()
        if nbytes > self._taken:
            self._room.take(self._party.name, nbytes - self._taken)
            self._party.spend(nbytes - self._taken)
            self._taken = nbytes
        return nbytes

    def _size(self) -> int:
        most = len(self.starts) * MAX_MESSAGE_BYTES
        received = self._sockets.received(self._peer)
        if received is None:
            # If the kernel does not count, it may be the largest possible message.
            is_unknown = monotonic() - self._began > UNKNOWN_SECONDS
            return most if is_unknown else self._taken
        return min(received - next(iter(self.starts.values())), most)


@dataclass(slots=True)
class Reception:
    """How the messages of one call are received.

    Attributes:
        most: bytes of one message.
        is_paced: whether a message must come at a least rate; one of a stream may be a while off.
        counter: where the call is counted while its message is awaited.
    """

    incoming: Incoming
    party: str
    most: int = MAX_MESSAGE_BYTES
    is_paced: bool = True
    counter: Receiving | None = field(default=None)

    async def read(self, context: Context) -> Any:
        """The next message, or EOF. Raises Overloaded, DeadlineExceeded, and MALFORMED_MESSAGE for
        a message that is larger than any of its method."""
        if self.counter is not None:
            self.counter.receiving += 1
        try:
            with self.incoming.party(self.party) as party:
                message = await self._read(context, party)
        finally:
            if self.counter is not None:
                self.counter.receiving -= 1
        if message is not grpc.aio.EOF and len(message) > self.most:
            raise ServingError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "MALFORMED_MESSAGE",
                f"the request is larger than the {self.most} bytes that this method takes",
            )
        return message

    async def _read(self, context: Context, party: _Party) -> Any:
        await party.begin()
        with ExitStack() as youth:
            youth.callback(party.end_youth)
            # It runs in its own task, which ends with the call: gRPC frees nothing of a read that
            # is cancelled.
            reading = asyncio.ensure_future(context.read())
            reading.add_done_callback(_retrieve)
            with self.incoming.flow(context.peer(), party) as flow:
                await asyncio.wait((reading,), timeout=YOUNG_SECONDS)
                youth.close()
                if not reading.done():
                    await self._follow(reading, flow)
                elif (message := reading.result()) is not grpc.aio.EOF:
                    party.spend(len(message))
            return reading.result()

    async def _follow(self, reading: "asyncio.Future[Any]", flow: _Flow) -> None:
        pace, before = Pace(), 0
        while not reading.done():
            nbytes = flow.look()
            pace.receive(max(0, nbytes - before))
            before = nbytes
            if self.is_paced and not pace.remaining():
                raise DeadlineExceeded("the message arrives too slowly or not at all")
            await asyncio.wait((reading,), timeout=LOOK_SECONDS)


def _retrieve(reading: "asyncio.Future[Any]") -> None:
    # A message that has no receiver any more fails with its call.
    if not reading.cancelled():
        reading.exception()
