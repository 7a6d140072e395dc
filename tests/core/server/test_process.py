import asyncio
import json
import resource
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2

from pixtral_core.errors import StartupError
from pixtral_core.server.channel import MAX_MESSAGE_BYTES, ClientTls, open_channel
from pixtral_core.server.process import MAX_FILES, raise_file_limit, running
from pixtral_core.settings import ProcessSettings
from tests.support.certificate_authority import Authority
from tests.support.echo_tier import SERVICE, Context, EchoStub, EchoTier, echo, health_stub
from tests.support.http2 import Http2Sender


async def upper(request: StringValue, context: Context) -> StringValue:
    return StringValue(value=request.value.upper())


async def test_health_knows_the_process_and_each_service() -> None:
    async with (
        running(EchoTier(unary=upper), ProcessSettings()) as addresses,
        open_channel(addresses.grpc, None) as channel,
    ):
        health = health_stub(channel)
        for service in ("", SERVICE):
            reply = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await health.Check(health_pb2.HealthCheckRequest(service="other"))
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_alone_is_answered_without_tls_where_that_is_asked_for(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    certificate, private_key = Authority(tmp_path, "ours").issue("server")
    settings = ProcessSettings(
        tls_certificate=certificate,
        tls_private_key=private_key,
        health_listen=f"127.0.0.1:{unused_tcp_port}",
    )
    async with (
        running(EchoTier(unary=upper), settings),
        open_channel(f"127.0.0.1:{unused_tcp_port}", None) as channel,
    ):
        reply = await health_stub(channel).Check(health_pb2.HealthCheckRequest())
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await EchoStub(channel).unary(StringValue())
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_metrics_are_served_over_http() -> None:
    async with running(EchoTier(unary=upper), ProcessSettings()) as addresses:
        async with open_channel(addresses.grpc, None) as channel:
            await EchoStub(channel).unary(StringValue())
        with await asyncio.to_thread(
            urllib.request.urlopen, f"http://{addresses.metrics}/metrics", timeout=60
        ) as reply:
            text = reply.read().decode()
    assert 'grpc_server_handled_total{grpc_code="OK",grpc_method="Unary"' in text
    assert "process_resident_memory_bytes" in text


async def test_calls_are_refused_until_the_tier_has_started(tmp_path: Path) -> None:
    loaded = asyncio.Event()

    class Slow(EchoTier):
        async def start(self) -> None:
            await loaded.wait()

    file = tmp_path / "address.json"
    entered = asyncio.Event()
    leave = asyncio.Event()

    async def serve() -> None:
        async with running(Slow(unary=upper), ProcessSettings(address_file=file)):
            entered.set()
            await leave.wait()

    serving = asyncio.create_task(serve())
    async with asyncio.timeout(60):
        while not file.exists():
            await asyncio.sleep(0.005)
    addresses = json.loads(file.read_text())
    assert set(addresses) == {"grpc", "metrics"}
    async with open_channel(addresses["grpc"], None) as channel:
        stub, health = EchoStub(channel), health_stub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.unary(StringValue())
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        reply = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
        loaded.set()
        async with asyncio.timeout(60):
            await entered.wait()
        assert (await stub.unary(StringValue(value="a"))).value == "A"
    leave.set()
    await serving


async def test_a_call_in_flight_is_finished_before_the_tier_is_stopped() -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def unary(request: StringValue, context: Context) -> StringValue:
        entered.set()
        await release.wait()
        return StringValue(value=str(tier.stopped))

    tier = EchoTier(unary=unary)
    stack = running(tier, ProcessSettings())
    addresses = await stack.__aenter__()
    async with open_channel(addresses.grpc, None) as channel:
        call = asyncio.ensure_future(EchoStub(channel).unary(StringValue()))
        async with asyncio.timeout(60):
            await entered.wait()
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        leaving = asyncio.create_task(stack.__aexit__(None, None, None))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        release.set()
        assert (await call).value == "False"
        await leaving
    assert tier.stopped


async def test_several_servers_share_a_process() -> None:
    async with (
        echo(EchoTier(unary=upper)) as one,
        echo(EchoTier(unary=upper)) as two,
    ):
        assert (await one.unary(StringValue(value="a"))).value == "A"
        assert (await two.unary(StringValue(value="b"))).value == "B"


async def test_a_large_image_passes_and_a_larger_one_is_refused() -> None:
    async def length(request: StringValue, context: Context) -> StringValue:
        return StringValue(value=str(len(request.value)))

    async with (
        running(EchoTier(unary=length), ProcessSettings()) as addresses,
        # The limit meant here is the server's, not that of the project's own channels.
        grpc.aio.insecure_channel(
            addresses.grpc, options=[("grpc.max_send_message_length", -1)]
        ) as channel,
    ):
        stub = EchoStub(channel)
        size = MAX_MESSAGE_BYTES - 100
        assert (await stub.unary(StringValue(value="x" * size))).value == str(size)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.unary(StringValue(value="x" * (size + 200)))
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_tier_whose_start_fails_is_stopped() -> None:
    class Broken(EchoTier):
        async def start(self) -> None:
            raise StartupError("no model")

    tier = Broken()
    with pytest.raises(StartupError, match="no model"):
        async with running(tier, ProcessSettings()):
            pass
    assert tier.stopped


async def answers(address: str, tls: ClientTls | None) -> bool:
    async with open_channel(address, tls) as channel:
        try:
            reply = await EchoStub(channel).unary(StringValue(value="a"), timeout=60)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return reply.value == "A"


async def test_tls(tmp_path: Path) -> None:
    ours, others = Authority(tmp_path, "ours"), Authority(tmp_path, "others")
    certificate, private_key = ours.issue("server")
    settings = ProcessSettings(tls_certificate=certificate, tls_private_key=private_key)
    async with running(EchoTier(unary=upper), settings) as addresses:
        assert await answers(addresses.grpc, ClientTls(ours.ca))
        assert not await answers(addresses.grpc, ClientTls(others.ca))
        assert not await answers(addresses.grpc, None)


async def test_a_certificate_made_out_to_a_name_serves_at_an_address(tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    certificate, private_key = ours.issue("server", dns_name="encoder")
    settings = ProcessSettings(tls_certificate=certificate, tls_private_key=private_key)
    async with running(EchoTier(unary=upper), settings) as addresses:
        assert await answers(addresses.grpc, ClientTls(ours.ca, server_name="encoder"))
        assert not await answers(addresses.grpc, ClientTls(ours.ca, server_name="decoder"))
        assert not await answers(addresses.grpc, ClientTls(ours.ca))


async def test_mutual_tls_refuses_clients_that_the_authority_has_not_signed(
    tmp_path: Path,
) -> None:
    ours, others = Authority(tmp_path, "ours"), Authority(tmp_path, "others")
    certificate, private_key = ours.issue("server")
    settings = ProcessSettings(
        tls_certificate=certificate, tls_private_key=private_key, tls_client_ca=ours.ca
    )
    async with running(EchoTier(unary=upper), settings) as addresses:
        assert await answers(addresses.grpc, ClientTls(ours.ca, *ours.issue("client")))
        assert not await answers(addresses.grpc, ClientTls(ours.ca))
        assert not await answers(addresses.grpc, ClientTls(ours.ca, *others.issue("stranger")))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda certificate, key, other: key.write_bytes(other.read_bytes()),
        lambda certificate, key, other: key.write_text("not PEM"),
        lambda certificate, key, other: certificate.write_text("-----BEGIN CERTIFICATE-----\n"),
    ],
    ids=["another's key", "no PEM", "cut short"],
)
async def test_tls_files_that_do_not_serve_are_named_at_start(
    tmp_path: Path, spoil: Callable[[Path, Path, Path], None]
) -> None:
    authority = Authority(tmp_path, "ours")
    certificate, private_key = authority.issue("server")
    spoil(certificate, private_key, authority.issue("other")[1])
    settings = ProcessSettings(tls_certificate=certificate, tls_private_key=private_key)
    with pytest.raises(StartupError, match=r"server\.(key|pem)"):
        async with running(EchoTier(unary=upper), settings):
            pass


@pytest.mark.parametrize(
    "path",
    [
        f"/{SERVICE}/Unary",
        f"/{SERVICE}/Collect",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ],
)
async def test_a_packed_message_is_refused_before_it_has_come(path: str) -> None:
    async with running(EchoTier(unary=upper, collect=upper), ProcessSettings()) as addresses:
        sender = Http2Sender(addresses.grpc, path, ("grpc-encoding", "gzip"))
        answer = await asyncio.to_thread(sender.wait)
        sender.close()
    assert b"grpc-status\x0212" in answer, "UNIMPLEMENTED"


async def test_a_message_that_is_too_large_is_refused_before_it_has_come() -> None:
    async with running(EchoTier(unary=upper), ProcessSettings()) as addresses:
        sender = Http2Sender(addresses.grpc, f"/{SERVICE}/Unary")
        most = MAX_MESSAGE_BYTES + 1
        sent = await asyncio.to_thread(sender.send, most, most)
        answer = await asyncio.to_thread(sender.wait)
        sender.close()
    assert sent < most // 2
    assert b"grpc-status\x018" in answer, "RESOURCE_EXHAUSTED"


def test_a_process_may_have_as_many_files_as_the_hard_limit_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, MAX_FILES), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_calls_that_nobody_has_looked_at_yet_are_dropped_for_no_flood() -> None:
    async with running(EchoTier(unary=upper), ProcessSettings()) as addresses:
        # Not asyncio's: the server's loop stands still while these are sent.
        with grpc.insecure_channel(addresses.grpc) as channel:
            unary = channel.unary_unary(
                f"/{SERVICE}/Unary", StringValue.SerializeToString, StringValue.FromString
            )
            calls = [unary.future(StringValue(value="a"), timeout=60) for _ in range(3500)]
            codes = await asyncio.to_thread(lambda: {call.code() for call in calls})
    assert codes == {grpc.StatusCode.OK}
