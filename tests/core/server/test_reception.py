import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from pixtral_core.concurrency import rate
from pixtral_core.concurrency.shared_limit import SharedLimit
from pixtral_core.server import grpc_interceptor, reception
from pixtral_core.server.channel import open_channel
from pixtral_core.server.grpc_interceptor import EarlyCheck
from pixtral_core.server.process import running
from pixtral_core.server.reception import Incoming, Reception
from pixtral_core.server.socket_bytes import SocketBytes
from pixtral_core.settings import ProcessSettings
from tests.support.echo_tier import SERVICE, Context, EchoStub, EchoTier
from tests.support.gateway_harness import eventually
from tests.support.http2 import WINDOW, Http2Sender

MIB = 1 << 20
EXHAUSTED, LATE = b"grpc-status\x018", b"grpc-status\x014"


@dataclass
class Caller:
    receiving: int = 0


class CountingTier(EchoTier):
    """Knows callers by their metadata `who`; what comes from all of them is `room`."""

    def __init__(self, most: int) -> None:
        async def unary(request: StringValue, context: Context) -> StringValue:
            return StringValue(value=str(len(request.value)))

        async def collect(requests: AsyncIterator[StringValue], context: Context) -> StringValue:
            return StringValue(value=str([len(r.value) async for r in requests]))

        super().__init__(unary=unary, collect=collect)
        self.room = SharedLimit(most, refusal="too much")
        self.callers: dict[str, Caller] = {}
        self.incoming = Incoming(self.room)
        self.peer = ""

    def early_checks(self) -> dict[str, EarlyCheck]:
        def check(context: Context) -> Reception:
            who = str(dict(context.invocation_metadata() or ()).get("who"))
            caller = self.callers.setdefault(who, Caller())
            self.peer = context.peer()
            return Reception(self.incoming, who, counter=caller)

        return {f"{SERVICE}/{name}": check for name in ("Unary", "Collect")}


def sender_of(address: str, who: str, method: str = "Unary") -> Http2Sender:
    return Http2Sender(address, f"/{SERVICE}/{method}", ("who", who))


async def test_bytes_that_are_being_received_are_counted_and_given_back() -> None:
    tier = CountingTier(64 * MIB)
    async with running(tier, ProcessSettings()) as addresses:
        sender = sender_of(addresses.grpc, "a")
        # On a busy machine the message could come before anybody awaits it.
        await eventually(lambda: "a" in tier.callers and tier.callers["a"].receiving)
        sent = await asyncio.to_thread(sender.send, 3 * MIB, 4 * MIB)
        assert sent == 3 * MIB
        # But for what had come before the connection's bytes were first counted.
        await eventually(lambda: tier.room.taken("a") >= 3 * MIB - WINDOW)
        assert tier.room.total < 4 * MIB
        assert tier.callers["a"].receiving == 1
        sender.close()
        await eventually(lambda: not tier.room.total)
        assert tier.callers["a"].receiving == 0


async def test_what_is_beyond_a_callers_share_is_refused_and_others_are_answered() -> None:
    tier = CountingTier(16 * MIB)
    async with running(tier, ProcessSettings()) as addresses:
        floods = [sender_of(addresses.grpc, "flood") for _ in range(4)]
        sending = [asyncio.to_thread(each.send, 6 * MIB, 7 * MIB) for each in floods]
        await asyncio.gather(*sending)
        answers = [each.answer for each in floods]
        assert any(EXHAUSTED in answer for answer in answers)
        assert tier.room.taken("flood") <= 12 * MIB
        async with open_channel(addresses.grpc, None) as channel:
            stub = EchoStub(channel)
            large = StringValue(value="x" * 3 * MIB)
            answer = await stub.unary(large, metadata=(("who", "calm"),), timeout=60)
            assert answer.value == str(3 * MIB)
        for each in floods:
            each.close()
        await eventually(lambda: not tier.room.total)


@pytest.mark.parametrize("method", ["Unary", "Collect"])
async def test_messages_that_come_at_once_are_answered(method: str) -> None:
    tier = CountingTier(16 * MIB)
    async with (
        running(tier, ProcessSettings()) as addresses,
        open_channel(addresses.grpc, None) as channel,
    ):
        stub, value = EchoStub(channel), StringValue(value="x" * MIB)
        for _ in range(30):
            if method == "Unary":
                assert (await stub.unary(value)).value == str(MIB)
            else:
                assert (await stub.collect(iter([value] * 3))).value == str([MIB] * 3)
        assert not tier.room.total


async def test_a_message_that_does_not_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reception, "PACE_SECONDS", 0.2)
    tier = CountingTier(16 * MIB)
    async with running(tier, ProcessSettings()) as addresses:
        sender = sender_of(addresses.grpc, "a")
        await asyncio.to_thread(sender.send, 1000, 2000)
        assert LATE in await asyncio.to_thread(sender.wait)
        sender.close()
        await eventually(lambda: not tier.room.total)


async def test_where_the_kernel_counts_nothing_a_message_is_taken_for_the_largest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SocketBytes, "received", lambda self, peer: None)
    monkeypatch.setattr(reception, "UNKNOWN_SECONDS", 0.0)
    tier = CountingTier(100 * MIB)
    async with running(tier, ProcessSettings()) as addresses:
        senders = [sender_of(addresses.grpc, who) for who in "ab"]
        for sender in senders:
            await asyncio.to_thread(sender.send, 1000, 2000)
        answers = [await asyncio.to_thread(sender.wait, 1) for sender in senders]
        assert EXHAUSTED in b"".join(answers)
        for sender in senders:
            sender.close()


@pytest.mark.parametrize(
    "path",
    ["/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"],
)
async def test_without_a_key_no_more_is_received_than_there_is_room_for(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_interceptor, "UNGATED_BYTES_AT_ONCE", 8 * MIB)
    async with running(EchoTier(), ProcessSettings()) as addresses:
        sender = Http2Sender(addresses.grpc, path)
        sent = await asyncio.to_thread(sender.send, 60 * MIB, 61 * MIB)
        answer = await asyncio.to_thread(sender.wait)
        sender.close()
    # Less than all, by what comes between two looks.
    assert sent < 60 * MIB
    assert EXHAUSTED in answer


PEER = "ipv4:127.0.0.1:1"


@dataclass
class Counted:
    """Stands in for the kernel's count of a connection's bytes."""

    nbytes: int | None = 1000

    def add(self, nbytes: int = 1) -> None:
        self.nbytes = (self.nbytes or 0) + nbytes


@pytest.fixture
def came(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()

    def received(self: SocketBytes, peer: str) -> int | None:
        self.has_counted |= counted.nbytes is not None
        return counted.nbytes

    monkeypatch.setattr(SocketBytes, "received", received)
    return counted


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    for module in (reception, rate):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


async def calls(incoming: Incoming, count: int) -> list["asyncio.Task[int]"]:
    """Calls that await their turn, or have had it."""
    with incoming.flow(PEER, "a") as flow:
        tasks = [asyncio.create_task(flow.begin()) for _ in range(count)]
        await asyncio.sleep(0)
    return tasks


async def test_messages_of_a_party_begin_in_their_order_one_at_a_time(
    came: Counted, clock: list[float]
) -> None:
    incoming = Incoming(SharedLimit(MIB, refusal="too much"))
    with incoming.flow(PEER, "a") as flow, incoming.flow(PEER, "b") as other:
        tasks = await calls(incoming, 4)
        assert [task.done() for task in tasks] == [True, False, False, False]
        # Another party's begins at once.
        await asyncio.wait_for(other.begin(), 60)
        tasks[1].cancel()
        came.add()
        flow.end_youth()
        await asyncio.wait((tasks[1], tasks[2]))
        assert tasks[1].cancelled()
        assert not tasks[3].done()
        # Cancelled when it has its turn already, and does not know yet.
        came.add()
        flow.end_youth()
        tasks[3].cancel()
        await asyncio.wait((tasks[3],))
        assert tasks[3].cancelled()
        # Nobody is young any more.
        came.add()
        await asyncio.wait_for(flow.begin(), 60)


async def test_few_messages_begin_while_nothing_comes_of_them(
    came: Counted, clock: list[float]
) -> None:
    incoming = Incoming(SharedLimit(MIB, refusal="too much"))
    with incoming.flow(PEER, "a") as flow:
        for _ in range(reception.MOST_QUIET):
            await flow.begin()
            flow.end_youth()
        (waits,) = await calls(incoming, 1)
        assert not waits.done()
        came.add()
        await asyncio.wait_for(waits, 60)
        flow.end_youth()
        # For no longer than a moment: a stream's next message may be far off.
        await flow.begin()
        flow.end_youth()
        (waits,) = await calls(incoming, 1)
        assert not waits.done()
        clock[0] += 2 * reception.QUIET_SECONDS
        await asyncio.wait_for(waits, 60)


async def test_few_messages_begin_on_a_connection_that_is_not_found_yet(
    came: Counted, clock: list[float]
) -> None:
    incoming = Incoming(SharedLimit(MIB, refusal="too much"))
    with incoming.flow(PEER, "a") as flow:
        # Where the kernel has counted nothing as yet, nothing is known of anybody.
        came.nbytes = None
        for _ in range(2 * reception.MOST_QUIET):
            await asyncio.wait_for(flow.begin(), 60)
            flow.end_youth()
    with incoming.flow("ipv4:127.0.0.1:2", "b") as other:
        came.nbytes = 1
        await other.begin()
    with incoming.flow(PEER, "a") as flow:
        came.nbytes = None
        for _ in range(reception.MOST_QUIET):
            await flow.begin()
            flow.end_youth()
        (waits,) = await calls(incoming, 1)
        assert not waits.done()
        came.nbytes = 1
        await asyncio.wait_for(waits, 60)


async def test_no_message_begins_while_another_comes_fast(
    came: Counted, clock: list[float]
) -> None:
    incoming = Incoming(SharedLimit(MIB, refusal="too much"))
    with incoming.flow(PEER, "a") as flow, incoming.flow(PEER, "b") as other:
        number = await flow.begin()
        flow.end_youth()
        came.add(MIB)
        waits, also_waits = await calls(incoming, 2)
        assert not waits.done()
        await asyncio.wait_for(other.begin(), 60)
        flow.end(number)
        await asyncio.wait_for(waits, 60)
        # The next one goes on when the message has paused.
        came.add(MIB)
        flow.end_youth()
        assert not also_waits.done()
        clock[0] += MIB / reception.FAST_BYTES_A_SECOND
        await asyncio.wait_for(also_waits, 60)


async def test_messages_begin_beside_one_that_comes_slowly(
    came: Counted, clock: list[float]
) -> None:
    incoming = Incoming(SharedLimit(MIB, refusal="too much"))
    with incoming.flow(PEER, "a") as flow:
        await flow.begin()
        for _ in range(8):
            flow.end_youth()
            came.add(reception.FAST_BYTES_A_SECOND // 200)
            clock[0] += 0.006
            await asyncio.wait_for(flow.begin(), 60)


async def test_a_connection_over_which_much_has_come_waits(
    came: Counted, clock: list[float]
) -> None:
    incoming = Incoming(SharedLimit(MIB, refusal="too much"))
    with incoming.flow(PEER, "a") as flow, incoming.flow(PEER, "b") as other:
        number = await flow.begin()
        flow.end_youth()
        came.add(reception.BURST_BYTES + reception.BYTES_A_SECOND // 100)
        flow.slow_down(reception.LARGE_BYTES)
        (waits,) = await calls(incoming, 1)
        flow.end(number)
        assert not waits.done()
        await asyncio.wait_for(other.begin(), 60)
        clock[0] += 0.02
        await asyncio.wait_for(waits, 60)


async def test_after_a_large_message_a_connection_waits_longer(
    came: Counted, clock: list[float]
) -> None:
    incoming = Incoming(SharedLimit(MIB, refusal="too much"))
    with incoming.flow(PEER, "a") as flow:
        number = await flow.begin()
        flow.end_youth()
        flow.slow_down(2 * reception.LARGE_BYTES)
        flow.end(number)
    # Nothing else is under way on it meanwhile.
    with incoming.flow(PEER, "a") as flow:
        (waits,) = await calls(incoming, 1)
        seconds = 2 * reception.LARGE_BYTES / reception.BYTES_A_SECOND
        clock[0] += 2 * seconds
        await asyncio.sleep(0)
        assert not waits.done()
        clock[0] += 2 * seconds
        await asyncio.wait_for(waits, 60)


async def test_a_message_that_waits_for_its_turn_stays_with_its_sender() -> None:
    tier, counts = CountingTier(640 * MIB), SocketBytes()
    large = StringValue(value="x" * 20 * MIB)
    async with (
        running(tier, ProcessSettings()) as addresses,
        open_channel(addresses.grpc, None) as channel,
    ):
        stub = EchoStub(channel)

        async def ask(who: str) -> str:
            answer: StringValue = await stub.unary(large, metadata=(("who", who),))
            return answer.value

        # From these, gRPC would learn that the connection is fast.
        for _ in range(4):
            await ask("b")
        before = counts.received(tier.peer)
        assert before is not None
        with tier.incoming.flow(tier.peer, "a") as flow:
            await flow.begin()
            waiting = [asyncio.create_task(ask("a")) for _ in range(4)]
            await eventually(lambda: "a" in tier.callers and tier.callers["a"].receiving == 4)
            await ask("b")
            assert (counts.received(tier.peer) or 0) - before < 30 * MIB
            flow.end_youth()
            assert set(await asyncio.gather(*waiting)) == {str(20 * MIB)}


async def test_large_messages_of_one_party_at_once_are_all_answered() -> None:
    tier = CountingTier(640 * MIB)
    async with (
        running(tier, ProcessSettings()) as addresses,
        open_channel(addresses.grpc, None) as channel,
    ):
        stub, value = EchoStub(channel), StringValue(value="x" * 20 * MIB)
        answers = await asyncio.gather(*(stub.unary(value) for _ in range(12)))
        assert {answer.value for answer in answers} == {str(20 * MIB)}
        await eventually(lambda: not tier.room.total)
