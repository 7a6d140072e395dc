import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2

from pixtral_core.server import health
from pixtral_core.server.channel import open_channel
from pixtral_core.server.process import running
from pixtral_core.settings import ProcessSettings
from tests.support.echo_tier import SERVICE, EchoTier, health_stub


async def first_of(channel: grpc.aio.Channel, name: str = "") -> int:
    """The first status that a watcher gets, which goes on watching."""
    watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(service=name))
    status: int = (await watch.read()).status
    return status


async def test_a_watcher_is_told_each_change_by_every_name() -> None:
    watched = health.Health([SERVICE])
    server = health.health_server(watched)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}", None) as channel:
        stub = health_stub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service=n)) for n in ("", SERVICE)]
        for status in (health.NOT_SERVING, health.SERVING, health.NOT_SERVING):
            watched.set(status)
            for watch in watches:
                assert (await watch.read()).status == status
    await server.stop(0)


@pytest.mark.parametrize("is_alone", [False, True], ids=["beside a tier", "on a port of its own"])
async def test_a_name_that_is_not_served_is_not_watched(
    is_alone: bool, unused_tcp_port: int
) -> None:
    settings = ProcessSettings(health_listen=f"127.0.0.1:{unused_tcp_port}")
    async with running(EchoTier(), settings) as addresses:
        address = str(settings.health_listen) if is_alone else addresses.grpc
        async with open_channel(address, None) as channel:
            assert await first_of(channel, SERVICE) == health.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await first_of(channel, "other")
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("is_alone", [False, True], ids=["beside a tier", "on a port of its own"])
async def test_a_name_is_kilobytes_at_most(is_alone: bool, unused_tcp_port: int) -> None:
    settings = ProcessSettings(health_listen=f"127.0.0.1:{unused_tcp_port}")
    async with running(EchoTier(), settings) as addresses:
        address = str(settings.health_listen) if is_alone else addresses.grpc
        async with open_channel(address, None) as channel:
            long = health_pb2.HealthCheckRequest(service="x" * 5000)
            for method in ("Check", "Watch"):
                call = getattr(health_stub(channel), method)(long)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await (call if method == "Check" else call.read())
                assert refused.value.code() in (
                    grpc.StatusCode.INVALID_ARGUMENT,
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                )


async def test_watchers_of_one_address_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MAX_WATCHERS_OF_A_HOST", 3)
    async with (
        running(EchoTier(), ProcessSettings()) as addresses,
        open_channel(addresses.grpc, None) as channel,
    ):
        stub = health_stub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
        for watch in watches:
            await watch.read()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await first_of(channel)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        watches.pop().cancel()
        async with asyncio.timeout(30):
            while True:
                try:
                    assert await first_of(channel) == health.SERVING
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.01)
