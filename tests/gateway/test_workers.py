"""`python -m pixtral_gateway --workers 2`: several processes behind one port."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2, chat_pb2_grpc
from tests.support.fake_tiers import FakeDecoder, Responses, delta
from tests.support.gateway_harness import eventually
from tests.support.gateway_pictures import text, user
from tests.support.stack.service import sample_value

ROOT = Path(__file__).parents[2]
ENVIRONMENT = dict(os.environ)
REQUEST = chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[user(text("Hello?"))]))
# The kernel distributes connections at random: all reach one worker once in 2**31 runs.
CONNECTIONS = 32


class Gateway:
    def __init__(self, process: asyncio.subprocess.Process, told: Path) -> None:
        self.process = process
        self._told = told

    @property
    def addresses(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self._told.read_text())
        return found

    def workers(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def connected(self) -> set[int]:
        """The workers that hold connections of the gRPC port."""
        port = int(self.addresses["grpc"].rpartition(":")[2])
        return {
            pid
            for pid in self.workers()
            if any(
                each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED
                for each in psutil.Process(pid).net_connections("tcp")
            )
        }

    async def value(self, sample: str, **labels: str) -> float:
        return await asyncio.to_thread(sample_value, self.addresses["metrics"], sample, **labels)

    @asynccontextmanager
    async def stubs(self, number: int) -> "AsyncIterator[list[chat_pb2_grpc.ChatServiceAsyncStub]]":
        """Each with a connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with AsyncExitStack() as channels:
            yield [
                chat_pb2_grpc.ChatServiceStub(
                    await channels.enter_async_context(
                        grpc.aio.insecure_channel(self.addresses["grpc"], options=options)
                    )
                )
                for _ in range(number)
            ]


@asynccontextmanager
async def gateway(
    model_dir: Path, directory: Path, decoders: Sequence[FakeDecoder], *flags: str
) -> AsyncIterator[Gateway]:
    told = directory / "addresses.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(
            "-m",
            "pixtral_gateway",
            "--workers=2",
            "--max-concurrent-requests=65",
            "--log-level=warning",
        ),
        *("--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"),
        f"--model-dir={model_dir}",
        f"--decoders={','.join(decoder.address for decoder in decoders)}",
        f"--address-file={told}",
        *flags,
        cwd=directory,
        env={**ENVIRONMENT, "TMPDIR": str(directory)},
    )
    try:
        await eventually(lambda: told.exists() or process.returncode is not None, 180)
        yield Gateway(process, told)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_both_serve_and_one_that_is_killed_is_replaced(
    model_dir: Path, tmp_path: Path, decoders: list[FakeDecoder]
) -> None:
    async with gateway(model_dir, tmp_path, decoders) as running:
        first = running.workers()
        assert len(first) == 2
        async with running.stubs(CONNECTIONS) as stubs:
            answers = await asyncio.gather(*(stub.Complete(REQUEST) for stub in stubs))
            assert {answer.choices[0].text for answer in answers} == {"Hello world"}
            assert running.connected() == first
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            answer = await http.post(
                f"http://{running.addresses['http']}/v1/chat/completions",
                json={"messages": [{"role": "user", "content": "Hello?"}]},
            )
        assert answer.json()["choices"][0]["message"]["content"] == "Hello world"

        completed = CONNECTIONS + 1
        assert await running.value("pixtral_gateway_requests_total", code="OK") == completed
        assert await running.value("pixtral_gateway_permits_limit") == 65
        assert await running.value("pixtral_gateway_replicas_ready", tier="decoder") == 2
        assert await running.value("pixtral_build_info") == 1
        memory = sum(psutil.Process(pid).memory_info().rss for pid in first)
        assert await running.value("process_resident_memory_bytes") > memory / 2

        os.kill(min(first), signal.SIGKILL)
        await eventually(lambda: len(running.workers() - first) == 1, 120)
        async with running.stubs(CONNECTIONS) as stubs:
            # The worker that accepts answers: there is no moment at which one that loads is called.
            await asyncio.gather(*(stub.Complete(REQUEST) for stub in stubs))

        async def both() -> bool:
            async with running.stubs(CONNECTIONS) as stubs:
                await asyncio.gather(*(stub.Complete(REQUEST) for stub in stubs))
                return running.connected() == running.workers()

        async with asyncio.timeout(120):
            while not await both():
                await asyncio.sleep(0.1)
        # The counts of the dead one still count, and its permits do not.
        assert await running.value("pixtral_gateway_requests_total", code="OK") > completed
        assert await running.value("pixtral_gateway_permits_limit") == 65


async def test_sigterm_drains_both(
    model_dir: Path, tmp_path: Path, decoders: list[FakeDecoder]
) -> None:
    release = asyncio.Event()

    async def until_released(_: decoder_pb2.GenerateRequest) -> Responses:
        yield delta("Hello", 1001)
        await release.wait()
        yield delta(" world", 1002, finish=chat_pb2.FINISH_REASON_STOP)

    for decoder in decoders:
        decoder.behaviours = [until_released]
    request = chat_pb2.StreamCompleteRequest(chat=REQUEST.chat)
    async with (
        gateway(model_dir, tmp_path, decoders) as running,
        running.stubs(CONNECTIONS) as stubs,
    ):
        streams: list[Any] = [stub.StreamComplete(request) for stub in stubs]
        begun = [await stream.read() for stream in streams]
        assert running.connected() == running.workers()
        running.process.terminate()
        await asyncio.sleep(0)
        release.set()
        for stream, first in zip(streams, begun, strict=True):
            words = [first.delta.text]
            while (response := await stream.read()) is not grpc.aio.EOF:
                words.append(response.delta.text)
            assert "".join(words) == "Hello world"
        assert await asyncio.wait_for(running.process.wait(), 120) == 0


def metrics_in(directory: Path) -> list[Path]:
    """Where the workers of gateways whose temporary directory this is write their metrics."""
    return list(directory.glob("pixtral-metrics-*"))


async def test_ports_are_one_gateways_and_workers_end_with_a_parent_that_is_killed(
    model_dir: Path, tmp_path: Path, decoders: list[FakeDecoder]
) -> None:
    async with gateway(model_dir, tmp_path, decoders) as running:
        second = tmp_path / "second"
        second.mkdir()
        listen = f"--listen={running.addresses['grpc']}"
        async with gateway(model_dir, second, decoders, listen) as other:
            assert await asyncio.wait_for(other.process.wait(), 120) == 1
        workers = running.workers()
        assert metrics_in(tmp_path)
        running.process.kill()
        await running.process.wait()
        await eventually(lambda: not any(psutil.pid_exists(pid) for pid in workers), 120)
    assert not metrics_in(tmp_path)


async def test_ready_once_all_serve(model_dir: Path, tmp_path: Path, unused_tcp_port: int) -> None:
    decoder = FakeDecoder()
    await decoder.start()
    await decoder.stop()
    health_listen = f"127.0.0.1:{unused_tcp_port}"
    starting = asyncio.create_task(_health(health_listen))
    async with asyncio.timeout(180), asyncio.TaskGroup() as group:

        async def come_back() -> None:
            # Seen not ready while no worker can be.
            assert await starting == health_pb2.HealthCheckResponse.NOT_SERVING
            await decoder.start()

        group.create_task(come_back())
        flags = f"--health-listen={health_listen}"
        async with gateway(model_dir, tmp_path, [decoder], flags) as running:
            assert await _health(health_listen) == health_pb2.HealthCheckResponse.SERVING
            assert len(running.workers()) == 2
    await decoder.stop()


async def _health(address: str) -> int:
    """Its first answer."""
    async with asyncio.timeout(180):
        while True:
            async with grpc.aio.insecure_channel(address) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                request = health_pb2.HealthCheckRequest()
                try:
                    return int((await stub.Check(request, wait_for_ready=True)).status)
                except grpc.aio.AioRpcError as error:
                    # Who tries again and again to connect to a port before anyone listens there
                    # may have it for an own port once, and hear only itself.
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise


async def test_a_gateway_whose_workers_cannot_start_ends(
    tmp_path: Path, decoders: list[FakeDecoder]
) -> None:
    (tmp_path / "model").mkdir()
    async with gateway(tmp_path / "model", tmp_path, decoders) as running:
        assert await asyncio.wait_for(running.process.wait(), 120) == 1


async def test_a_limit_is_one_for_all_workers_and_what_a_dead_one_held_comes_back(
    model_dir: Path, tmp_path: Path, decoders: list[FakeDecoder]
) -> None:
    most = 20
    release = asyncio.Event()

    async def until_released(_: decoder_pb2.GenerateRequest) -> Responses:
        yield delta("Hello", 1001)
        await release.wait()
        yield delta(" world", 1002, finish=chat_pb2.FINISH_REASON_STOP)

    for decoder in decoders:
        decoder.behaviours = [until_released]
    request = chat_pb2.StreamCompleteRequest(chat=REQUEST.chat)
    flag = f"--max-concurrent-requests={most}"
    async with (
        gateway(model_dir, tmp_path, decoders, flag) as running,
        running.stubs(1) as first,
        running.stubs(CONNECTIONS) as stubs,
    ):
        # One connection, and so one worker, may use the whole limit.
        streams: list[Any] = [first[0].StreamComplete(request) for _ in range(most)]
        for stream in streams:
            assert (await stream.read()).HasField("delta")
        (busy,) = running.connected()
        refused = await asyncio.gather(
            *(stub.Complete(REQUEST) for stub in stubs), return_exceptions=True
        )
        assert running.connected() == running.workers()
        assert {each.code() for each in refused if isinstance(each, grpc.aio.AioRpcError)} == {
            grpc.StatusCode.RESOURCE_EXHAUSTED
        }
        assert len(refused) == CONNECTIONS
        assert await running.value("pixtral_gateway_permits_limit") == most

        os.kill(busy, signal.SIGKILL)
        release.set()
        await eventually(lambda: busy not in running.workers(), 60)

        async def is_served() -> bool:
            async with running.stubs(1) as (stub,):
                try:
                    await stub.Complete(REQUEST)
                except grpc.aio.AioRpcError:
                    return False
            return True

        async with asyncio.timeout(60):
            while not await is_served():
                await asyncio.sleep(0.05)
