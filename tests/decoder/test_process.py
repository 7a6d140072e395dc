"""The decoder as a process of its own: health while it loads, and the death of its engine."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pixtral.internal.v1 import decoder_pb2, decoder_pb2_grpc
from pixtral.v1 import chat_pb2
from pixtral_core.server.channel import open_channel
from tests.support.redis_server import RedisServer

START_SECONDS = 180.0
END_SECONDS = 60.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, slots=True)
class Decoder:
    process: asyncio.subprocess.Process
    channel: grpc.aio.Channel
    log: Path


@pytest.fixture
async def decoder(checkpoint: Path, redis: RedisServer, tmp_path: Path) -> AsyncIterator[Decoder]:
    """Started, and bound to its address; not ready."""
    addresses, log = tmp_path / "addresses.json", tmp_path / "log"
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pixtral_decoder"),
            *("--model-dir", checkpoint, "--redis-url", redis.url),
            *("--listen", "127.0.0.1:0", "--address-file", addresses),
            stdout=file,
            stderr=file,
        )
    try:
        async with asyncio.timeout(START_SECONDS):
            while not addresses.exists():
                assert process.returncode is None
                await asyncio.sleep(0.01)
        async with open_channel(json.loads(addresses.read_text())["grpc"], None) as channel:
            yield Decoder(process, channel, log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_from_its_start_to_the_death_of_its_engine(decoder: Decoder) -> None:
    stub = decoder_pb2_grpc.DecoderServiceStub(decoder.channel)
    health_stub: Any = health_pb2_grpc.HealthStub(decoder.channel)
    health = health_stub.Watch(
        health_pb2.HealthCheckRequest(service="pixtral.internal.v1.DecoderService")
    )
    async with asyncio.timeout(START_SECONDS):
        assert (await health.read()).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as early:
            await stub.GetDecoderInfo(decoder_pb2.GetDecoderInfoRequest())
        assert early.value.code() == grpc.StatusCode.UNAVAILABLE
        assert (await health.read()).status == SERVING
    # vLLM's lines have another form once it has started.
    told = decoder.log.read_text()
    assert "tokens of context" in told
    for noise in ("Logging error", "already registered", " vllm.", "WARNING"):
        assert noise not in told, told

    request = decoder_pb2.GenerateRequest(
        request_id="endless",
        prompt_token_ids=[1, 3, 1000, 4],
        sampling=chat_pb2.SamplingParams(max_tokens=16_000, temperature=0, ignore_eos=True),
    )
    call: Any = stub.Generate(request, timeout=END_SECONDS)
    answer = aiter(call)
    assert (await anext(answer)).delta.token_ids

    children = psutil.Process(decoder.process.pid).children()
    (engine,) = [child for child in children if is_engine(child)]
    engine.send_signal(signal.SIGKILL)

    async with asyncio.timeout(END_SECONDS):
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            async for _ in answer:
                pass
        assert cut.value.code() == grpc.StatusCode.UNAVAILABLE
        assert (await health.read()).status == NOT_SERVING
        assert await decoder.process.wait() == 1


async def test_a_decoder_killed_as_it_starts_its_engine_leaves_no_process(
    decoder: Decoder,
) -> None:
    process = psutil.Process(decoder.process.pid)
    async with asyncio.timeout(START_SECONDS):
        while not any(is_engine(child) for child in process.children()):
            await asyncio.sleep(0.01)
    left = process.children(recursive=True)

    decoder.process.kill()
    await decoder.process.wait()

    async with asyncio.timeout(END_SECONDS):
        while any(is_alive(child) for child in left):
            await asyncio.sleep(0.05)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_engine(process: psutil.Process) -> bool:
    try:
        return "EngineCore" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
