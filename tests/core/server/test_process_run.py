import asyncio
import gc
import json
import re
import signal
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2

from pixtral_core.errors import from_rpc_error
from pixtral_core.server.channel import open_channel
from tests.support.echo_child import process
from tests.support.echo_tier import SERVICE, EchoStub, health_stub, read_message

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def becomes(health: Any, status: int, service: str = "") -> None:
    async with asyncio.timeout(120):
        while (
            await health.Check(health_pb2.HealthCheckRequest(service=service), wait_for_ready=True)
        ).status != status:
            await asyncio.sleep(0.01)


async def refuses(address: str) -> None:
    """Returns once nobody can connect any more."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(120):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains(
    tmp_path: Path, unused_tcp_port: int, number: signal.Signals
) -> None:
    probed = f"127.0.0.1:{unused_tcp_port}"
    async with process(tmp_path, "--health-listen", probed) as served:
        addresses = await served.addresses()
        async with (
            open_channel(addresses["grpc"], None) as channel,
            open_channel(probed, None) as probe,
        ):
            stub, health = EchoStub(channel), health_stub(channel)
            await becomes(health, SERVING, SERVICE)
            watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert (await watch.read()).status == SERVING
            stream = stub.stream(StringValue())
            assert (await read_message(stream)).value == "first"

            served.child.send_signal(number)

            assert (await watch.read()).status == NOT_SERVING
            await becomes(health_stub(probe), NOT_SERVING)
            await refuses(addresses["grpc"])
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.stream(StringValue()).read()
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert not served.stopped.exists()

            served.release.touch()
            assert (await read_message(stream)).value == "last"
            assert await stream.read() is grpc.aio.EOF
            assert await stream.code() is grpc.StatusCode.OK
            # The watcher, which never ends by itself, does not hold the process up.
            assert (await served.ended())[0] == 0
            watch.cancel()
    assert served.stopped.exists()


async def test_what_was_loaded_is_not_looked_through_for_garbage(tmp_path: Path) -> None:
    async with process(tmp_path) as served:
        addresses = await served.addresses()
        async with open_channel(addresses["grpc"], None) as channel:
            await becomes(health_stub(channel), SERVING, SERVICE)
            stream = EchoStub(channel).stream(StringValue(value="garbage"))
            frozen, threshold = json.loads((await read_message(stream)).value)
            # An import of the whole is more.
            assert frozen > 10_000
            # It is rarely searched for while a process starts, and no longer.
            assert threshold == list(gc.get_threshold())


async def test_a_caller_goes_to_another_while_one_drains(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    async with process(tmp_path / "one") as one, process(tmp_path / "other") as other:
        targets = [(await each.addresses())["grpc"] for each in (one, other)]
        for target in targets:
            async with open_channel(target, None) as channel:
                await becomes(health_stub(channel), SERVING)
        # As a client within the cluster connects to all addresses of a name.
        options = [("grpc.lb_policy_name", "round_robin"), ("grpc.enable_http_proxy", 0)]
        async with (
            grpc.aio.insecure_channel(f"ipv4:{','.join(targets)}", options) as channel,
            open_channel(targets[0], None) as direct,
        ):
            stub = EchoStub(channel)
            begun = [stub.stream(StringValue()) for _ in range(8)]
            begun.append(EchoStub(direct).stream(StringValue()))
            for stream in begun:
                await read_message(stream)

            one.child.terminate()
            await refuses(targets[0])

            other.release.touch()
            for _ in range(8):
                assert (await read_message(stub.stream(StringValue()))).value == "first"
            assert one.child.returncode is None
            one.release.touch()
            for stream in begun:
                assert (await read_message(stream)).value == "last"
                assert await stream.code() is grpc.StatusCode.OK
            assert (await one.ended())[0] == 0


async def test_what_does_not_finish_in_time_is_cancelled(tmp_path: Path) -> None:
    async with process(tmp_path, "--drain-seconds", "0.1") as served:
        addresses = await served.addresses()
        async with open_channel(addresses["grpc"], None) as channel:
            await becomes(health_stub(channel), SERVING)
            stream = EchoStub(channel).stream(StringValue())
            await stream.read()
            served.child.terminate()
            with pytest.raises(grpc.aio.AioRpcError) as cut:
                await stream.read()
            assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
            code, log = await served.ended()
    assert code == 0
    assert "cancelling calls that still run after 0.1 s" in log
    assert served.stopped.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once(tmp_path: Path, number: signal.Signals) -> None:
    async with process(tmp_path) as served:
        addresses = await served.addresses()
        async with open_channel(addresses["grpc"], None) as channel:
            health = health_stub(channel)
            await becomes(health, SERVING)
            stream = EchoStub(channel).stream(StringValue())
            await stream.read()
            served.child.send_signal(number)
            await refuses(addresses["grpc"])
            served.child.send_signal(number)
            code, log = await served.ended()
            assert code == -number
            assert "Traceback" not in log
    assert not served.stopped.exists()


@pytest.mark.parametrize("start", ["awaits", "blocks"])
async def test_a_signal_cuts_the_start_short(tmp_path: Path, start: str) -> None:
    async with process(tmp_path, "--start", start) as served:
        addresses = await served.addresses()
        async with open_channel(addresses["grpc"], None) as channel:
            await becomes(health_stub(channel), NOT_SERVING)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await EchoStub(channel).stream(StringValue()).read()
            error = from_rpc_error(refused.value)
            assert (error.code, error.message) == (
                grpc.StatusCode.UNAVAILABLE,
                "the server is starting",
            )
        served.child.terminate()
        assert (await served.ended())[0] == 0
    assert served.stopped.exists()


@pytest.mark.parametrize("start", ["refuses", "breaks"])
async def test_a_tier_that_cannot_start_ends_the_process(tmp_path: Path, start: str) -> None:
    async with process(tmp_path, "--start", start) as served:
        code, log = await served.ended()
    assert code == 1
    assert ("cannot start: the model is not there" in log) is (start == "refuses")
    assert ("Traceback" in log) is (start == "breaks")
    assert served.stopped.exists()


async def test_a_tier_that_fails_ends_the_process(tmp_path: Path) -> None:
    async with process(tmp_path) as served:
        addresses = await served.addresses()
        async with open_channel(addresses["grpc"], None) as channel:
            health = health_stub(channel)
            await becomes(health, SERVING)
            stream = EchoStub(channel).stream(StringValue())
            await stream.read()
            watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert (await watch.read()).status == SERVING
            served.failure.touch()
            assert (await watch.read()).status == NOT_SERVING
            served.release.touch()
            assert (await served.ended())[0] == 1
            assert (await read_message(stream)).value == "last"
            watch.cancel()
    assert served.stopped.exists()


@pytest.mark.parametrize("flag", ["--listen", "--metrics-listen"])
async def test_an_address_that_is_taken_is_named(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with process(tmp_path, flag, address) as served:
            code, log = await served.ended()
    assert code == 1
    assert re.search(rf"cannot start: cannot .* on {address}", log)
    assert not served.address_file.exists()


async def test_logs_can_be_json(tmp_path: Path) -> None:
    async with process(tmp_path, "--log-format", "json", "--start", "breaks") as served:
        _, log = await served.ended()
    records = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [record["level"] for record in records] == ["info", "error"]
    assert "KeyError" in records[1]["traceback"]
    assert all(re.fullmatch(r"[\d-]+T[\d:.]+Z", record["time"]) for record in records)
