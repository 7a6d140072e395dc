"""Receives the messages of a call, and bounds their memory and their time."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import grpc

from pixtral_core.concurrency.rate import Rate, Rates
from pixtral_core.concurrency.shared_limit import SharedLimit
from pixtral_core.concurrency.unread_errors import read_error
from pixtral_core.errors import DeadlineExceeded, ServingError
from pixtral_core.server.channel import MAX_MESSAGE_BYTES
from pixtral_core.server.socket_bytes import SocketBytes

# gRPC's classes are generic in their stubs alone.
if TYPE_CHECKING:
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext

# Most messages arrive within this time, and the reception counts nothing for them.
YOUNG_SECONDS: Final = 0.005
LOOK_SECONDS: Final = 0.05
# gRPC copies complete messages on the event loop, all of them in one step: twenty of the largest
# would stop all other work for seconds. So four rules hold for one party on one connection:
# - One message is young at a time.
# - Few messages begin while no bytes of them come.
# - No message begins while another comes fast. One that has paused is not fast after a moment.
# - No message begins while the bytes that have come exceed a rate by more than a burst. The bytes
#   of a large message count four times, so that other work has most of the time.
MOST_YOUNG: Final = 1
MOST_QUIET: Final = 2
QUIET_SECONDS: Final = 0.25
FAST_BURST_BYTES: Final = 256 << 10
FAST_BYTES_A_SECOND: Final = 32 << 20
MOST_FAST_BYTES: Final = 8 << 20
BURST_BYTES: Final = 2 << 20
BYTES_A_SECOND: Final = 256 << 20
LARGE_BYTES: Final = 16 << 20
LARGE_FACTOR: Final = 4
# Finding a connection may take this long.
UNKNOWN_SECONDS: Final = 1.0
# The slowest sender that the server waits for sends PACE_BYTES in PACE_SECONDS.
PACE_SECONDS: Final = 10.0
PACE_BYTES: Final = 160 << 10


class Pace:
    """Distinguishes a sender that is slow on purpose from a distant one."""

    def __init__(self) -> None:
        self._received = 0
        self._latest = monotonic() + PACE_SECONDS

    def receive(self, nbytes: int) -> None:
        self._received += nbytes
        if self._received >= PACE_BYTES:
            self._received, self._latest = 0, monotonic() + PACE_SECONDS

    def remaining(self) -> float:
        """Seconds until the next bytes are due; 0 if they are overdue."""
        return max(0.0, self._latest - monotonic())


def when_behind(pace: Pace) -> float:
    """The time, on the event loop's clock, at which the next bytes are due."""
    return asyncio.get_running_loop().time() + pace.remaining()


class Receiving(Protocol):
    """Counts the calls of one party that await a message."""

    receiving: int


class Incoming:
    """The messages that are being received. `room` limits the bytes of all together."""

    def __init__(self, room: SharedLimit) -> None:
        self.room = room
        self._sockets = SocketBytes()
        self._flows: dict[tuple[str, str], _Flow] = {}
        # A flow ends with its last call; the debt of its party remains.
        self._rates = Rates(BYTES_A_SECOND, BURST_BYTES)

    @contextmanager
    def flow(self, peer: str, party: str) -> Iterator["_Flow"]:
        """The flow of a call that awaits a message: from `peer`, as gRPC names it, for `party`."""
        flow = self._flows.get((peer, party))
        if flow is None:
            flow = self._flows[peer, party] = _Flow(
                self.room, self._sockets, self._rates.of((peer, party)), peer, party
            )
        flow.calls += 1
        try:
            yield flow
        finally:
            flow.calls -= 1
            if not flow.calls:
                flow.close()
                del self._flows[peer, party]


class _Flow:
    """The messages over one connection for one party. The kernel counts bytes by connection, not by
    call.

    Messages begin in their order. A message shows its size only as it comes, so it is young until a
    part of it could have come.

    `starts` maps each message that has begun to the bytes that had come before it: none on a new
    connection. `calls` counts the calls that await a message, or their turn.
    """

    def __init__(
        self, room: SharedLimit, sockets: SocketBytes, rate: Rate, peer: str, party: str
    ) -> None:
        self.starts: dict[int, int] = {}
        self.calls = 0
        self._room = room
        self._sockets = sockets
        self._peer = peer
        self._party = party
        self._began = monotonic()
        self._number = 0
        self._rate = rate
        # The bytes of messages that have begun and not ended.
        self._fast = Rate(FAST_BYTES_A_SECOND, FAST_BURST_BYTES, most_debt=MOST_FAST_BYTES)
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._young = 0
        # Messages that have begun since the last bytes came, and the bytes that had come by then.
        self._quiet, self._quiet_at, self._quiet_since = 0, 0, 0.0
        # The bytes that had come at the last count.
        self._received: int | None = None

    async def begin(self) -> int:
        """Waits for a turn, and begins a message, which is young until `end_youth`."""
        if self._waiting or not self._may_begin():
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            self._give_turns()
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():
                    self.end_youth()
                raise
        else:
            self._young += 1
        self._number += 1
        received = self._received or 0
        self.starts[self._number] = received
        self._quiet, self._quiet_at, self._quiet_since = self._quiet + 1, received, monotonic()
        return self._number

    def end_youth(self) -> None:
        self._young -= 1
        self._give_turns()

    def slow_down(self, nbytes: int) -> None:
        """Delays the next messages if this many bytes are a large message."""
        if nbytes > LARGE_BYTES:
            self._rate.spend((LARGE_FACTOR - 1) * nbytes)

    def end(self, number: int) -> None:
        del self.starts[number]
        self._quiet = max(0, self._quiet - 1)
        self._fast.fill()
        nbytes = self._size() if self.starts and self._taken else 0
        if nbytes < self._taken:
            self._room.give_back(self._party, self._taken - nbytes)
            self._taken = nbytes
        self._give_turns()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def look(self) -> int:
        """Takes room for the bytes that have come since the last look, and returns the message's
        bytes so far. Raises Overloaded."""
        nbytes = self._size()
        if nbytes > self._taken:
            self._room.take(self._party, nbytes - self._taken)
            self._taken = nbytes
        return nbytes

    def _may_begin(self) -> bool:
        received = self._count()
        if not self._sockets.has_counted or (received or 0) > self._quiet_at:
            self._quiet = 0
        is_quiet = self._quiet >= MOST_QUIET and monotonic() - self._quiet_since <= QUIET_SECONDS
        is_fast = self.starts and self._fast.wait()
        return self._young < MOST_YOUNG and not (is_quiet or is_fast or self._rate.wait())

    def _count(self) -> int | None:
        """Counts the bytes that have come on the connection, and spends the new ones."""
        received = self._sockets.received(self._peer)
        if received is not None and self._received is not None:
            self._rate.spend(received - self._received)
            self._fast.spend(received - self._received)
        self._received = received
        return received

    def _give_turns(self) -> None:
        while self._waiting and self._may_begin():
            turn = self._waiting.popleft()
            if not turn.done():
                self._young += 1
                turn.set_result(None)
        if self._waiting and self._timer is None:
            loop = asyncio.get_running_loop()
            seconds = max(YOUNG_SECONDS, self._rate.wait())
            self._timer = loop.call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._give_turns()

    def _size(self) -> int:
        most = len(self.starts) * MAX_MESSAGE_BYTES
        received = self._count()
        if received is None:
            # Without the kernel's count, a message may have its largest size.
            is_unknown = monotonic() - self._began > UNKNOWN_SECONDS
            return most if is_unknown else self._taken
        return min(received - next(iter(self.starts.values())), most)


@dataclass(slots=True)
class Reception:
    """Receives the messages of one call.

    Attributes:
        most: the most bytes of one message.
        is_paced: whether a message must come at a minimum rate. In a stream, the next message may
            come much later.
        counter: counts the call while it awaits a message.
    """

    incoming: Incoming
    party: str
    most: int = MAX_MESSAGE_BYTES
    is_paced: bool = True
    counter: Receiving | None = field(default=None)

    async def read(self, context: Context) -> Any:
        """The next message, or EOF. Raises Overloaded, DeadlineExceeded, and MALFORMED_MESSAGE if
        the message is larger than its method allows."""
        if self.counter is not None:
            self.counter.receiving += 1
        try:
            with self.incoming.flow(context.peer(), self.party) as flow:
                message = await self._read(context, flow)
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

    async def _read(self, context: Context, flow: _Flow) -> Any:
        number = await flow.begin()
        with ExitStack() as message, ExitStack() as youth:
            message.callback(flow.end, number)
            youth.callback(flow.end_youth)
            # The read has a task of its own, which ends with the call: gRPC does not free the
            # memory of a cancelled read.
            reading = asyncio.ensure_future(context.read())
            reading.add_done_callback(read_error)
            await asyncio.wait((reading,), timeout=YOUNG_SECONDS)
            youth.close()
            if not reading.done():
                await self._follow(reading, flow)
            received = reading.result()
            if received is not grpc.aio.EOF:
                flow.slow_down(len(received))
            return received

    async def _follow(self, reading: "asyncio.Future[Any]", flow: _Flow) -> None:
        pace, before = Pace(), 0
        while not reading.done():
            nbytes = flow.look()
            pace.receive(max(0, nbytes - before))
            before = nbytes
            if self.is_paced and not pace.remaining():
                raise DeadlineExceeded("the message arrives too slowly or not at all")
            await asyncio.wait((reading,), timeout=LOOK_SECONDS)
