import asyncio
import socket
from pathlib import Path

import pytest

from pixtral_core.errors import StartupError
from pixtral_core.server.certificates import WatchedFiles
from pixtral_core.server.channel import open_channel
from pixtral_gateway.upstream import discovery
from pixtral_gateway.upstream.discovery import Group, resolve
from pixtral_gateway.upstream.registry import Tiers, under
from pixtral_gateway.upstream.replica import Contract, DecoderReplica
from tests.support.fake_tiers import FINGERPRINT, WIDTH, FakeDecoder
from tests.support.gateway_harness import decoder_at, encoder_at, eventually

CONTRACT = Contract("small", FINGERPRINT, WIDTH, "f32")


class Member:
    def __init__(self, address: str, name: str | None) -> None:
        self.address = address
        self.name = name
        self.watched = self.retired = self.closed = False

    async def watch(self) -> None:
        self.watched = True
        try:
            await asyncio.Event().wait()
        finally:
            self.watched = False

    def retire(self) -> None:
        self.retired = True

    async def close(self) -> None:
        self.closed = True


class Names:
    """A name server: a name without addresses cannot be looked up."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = set(addresses)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, name: str, port: int) -> set[str]:
        self.asked.append((name, port))
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return {f"{address}:{port}" for address in self.addresses}


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "SECONDS_BETWEEN_LOOKUPS", 0.01)


def addresses(group: Group[Member]) -> set[str]:
    return {member.address for member in group}


async def test_addresses_of_a_name_come_and_go() -> None:
    names = Names("10.0.0.1", "10.0.0.2")
    group = Group(["10.1.0.9:1", "dns:///encoder:2"], Member, resolve=names)
    group.start(Member.watch, asyncio.Event())
    await eventually(lambda: addresses(group) == {"10.1.0.9:1", "10.0.0.1:2", "10.0.0.2:2"})
    await eventually(lambda: all(member.watched for member in group))
    assert names.asked[0] == ("encoder", 2)
    assert {member.address: member.name for member in group}["10.0.0.1:2"] == "encoder"
    kept, left = (next(m for m in group if m.address == f"10.0.0.{i}:2") for i in (1, 2))

    names.addresses = {"10.0.0.1", "10.0.0.3"}
    await eventually(lambda: addresses(group) == {"10.1.0.9:1", "10.0.0.1:2", "10.0.0.3:2"})

    assert kept in set(group)
    assert not kept.retired
    assert left.retired
    await eventually(lambda: left.closed and not left.watched)
    await group.stop()
    assert all(member.closed and not member.watched for member in group)


async def test_name_that_cannot_be_looked_up_changes_nothing() -> None:
    names = Names("10.0.0.1")
    group = Group(["dns:///encoder:2"], Member, resolve=names)
    group.start(Member.watch, asyncio.Event())
    await eventually(lambda: addresses(group))
    (member,) = group

    names.addresses = set()
    asked = len(names.asked)
    await eventually(lambda: len(names.asked) > asked + 2)

    assert list(group) == [member]
    assert not member.retired
    await group.stop()


async def test_members_get_successors_when_the_files_that_they_read_change(
    tmp_path: Path,
) -> None:
    file = tmp_path / "tls.crt"
    file.write_text("old")
    group = Group(
        ["dns:///encoder:2"], Member, resolve=Names("10.0.0.1"), files=WatchedFiles((file,))
    )
    group.start(Member.watch, asyncio.Event())
    await eventually(lambda: addresses(group))
    (old,) = group

    file.write_text("another")

    await eventually(lambda: old.retired and old.closed)
    (new,) = group
    assert new is not old
    assert new.address == old.address
    assert new.watched
    await group.stop()


async def test_member_that_cannot_be_made_yet_joins_later() -> None:
    unreadable = True

    def make(address: str, name: str | None) -> Member:
        if unreadable:
            raise StartupError("cannot read tls.crt")
        return Member(address, name)

    names = Names("10.0.0.1")
    group = Group(["dns:///encoder:2"], make, resolve=names)
    group.start(Member.watch, asyncio.Event())
    await eventually(lambda: len(names.asked) > 1)
    assert addresses(group) == set()
    unreadable = False
    await eventually(lambda: addresses(group) == {"10.0.0.1:2"})
    await group.stop()


async def test_member_that_left_is_kept_open_for_what_it_has_begun() -> None:
    names = Names("10.0.0.1", "10.0.0.2")
    group = Group(["dns:///encoder:2"], Member, linger_seconds=3600, resolve=names)
    group.start(Member.watch, asyncio.Event())
    await eventually(lambda: len(addresses(group)) == 2)
    left = next(member for member in group if member.address == "10.0.0.2:2")

    names.addresses = {"10.0.0.1"}
    await eventually(lambda: left.retired)

    assert left not in set(group)
    assert not left.closed
    await group.stop()
    assert left.closed


async def test_lookup_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(discovery, "LOOKUP_SECONDS", 0.01)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", hang, raising=False)

    with pytest.raises(TimeoutError):
        await resolve("encoder", 1)


async def test_addresses_are_written_as_grpc_takes_them() -> None:
    assert await resolve("127.0.0.1", 5) == {"127.0.0.1:5"}
    assert await resolve("::1", 5) == {"[::1]:5"}


async def test_a_name_of_two_processes_is_two_replicas() -> None:
    """On real gRPC: two decoders at one port of two loopback addresses, behind one name."""
    first = FakeDecoder()
    await first.start()
    port = first.address.rpartition(":")[2]
    second = FakeDecoder()
    second.address = f"127.0.0.2:{port}"
    await second.start()
    names = Names("127.0.0.1", "127.0.0.2")
    tiers = Tiers(
        encoders=Group([], encoder_at),
        decoders=Group([f"dns:///decoder:{port}"], decoder_at, resolve=names),
        width=WIDTH,
        stall_seconds=30,
    )
    await tiers.start()
    await eventually(lambda: len(under(tiers.decoders, CONTRACT)) == 2)

    names.addresses = {"127.0.0.2"}

    await eventually(lambda: set(under(tiers.decoders, CONTRACT)) == {second.address})
    await tiers.stop()
    await asyncio.gather(first.stop(), second.stop())


async def test_call_to_a_replica_that_left_goes_on() -> None:
    decoder = FakeDecoder()
    await decoder.start()
    names = Names("127.0.0.1")
    port = decoder.address.rpartition(":")[2]
    group = Group(
        [f"dns:///decoder:{port}"],
        lambda address, _: DecoderReplica(address, open_channel(address, None)),
        linger_seconds=60,
        resolve=names,
    )
    tiers = Tiers(Group([], encoder_at), group, width=WIDTH, stall_seconds=30)
    await tiers.start()
    (replica,) = group
    names.addresses = {"127.0.0.2"}
    await eventually(lambda: replica not in set(group))

    assert replica.contract is None
    assert (await replica.handshake()).fingerprint == FINGERPRINT
    await tiers.stop()
    await decoder.stop()


async def test_a_watch_that_breaks_is_told() -> None:
    class Broken(Member):
        async def watch(self) -> None:
            raise RuntimeError("a fault of our own")

    broken = asyncio.Event()
    group = Group(["127.0.0.1:1"], Broken)
    group.start(Broken.watch, broken)
    async with asyncio.timeout(60):
        await broken.wait()
    await group.stop()


async def test_a_watch_that_is_stopped_is_not_broken() -> None:
    broken = asyncio.Event()
    group = Group(["127.0.0.1:1"], Member)
    group.start(Member.watch, broken)
    await group.stop()
    assert not broken.is_set()
