"""Fixtures of a gateway with fake tiers."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from models.random_checkpoint import RandomSpec, write_random_checkpoint
from pixtral.v1 import chat_pb2_grpc
from pixtral_core.model.vision_spec import VisionSpec, read_params
from pixtral_core.server.process import running
from pixtral_gateway.process import GatewayTier
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from pixtral_gateway.settings import GatewaySettings
from tests.support.fake_tiers import FakeDecoder, FakeEncoder
from tests.support.gateway_harness import Client, Harness
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint, because the gateway reads only its parameters and tokenizer."""
    spec = RandomSpec(dim=8, n_layers=1, n_heads=1, n_kv_heads=1, vision_layers=1)
    return write_random_checkpoint(tmp_path_factory.mktemp("models") / "pixtral-small", spec)


@pytest.fixture(scope="session")
def spec(model_dir: Path) -> VisionSpec:
    return VisionSpec.from_params(read_params(model_dir))


@pytest.fixture(scope="session")
def prompts(model_dir: Path, spec: VisionSpec) -> PromptEncoder:
    return PromptEncoder.load(model_dir, spec)


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis(redis_server: RedisServer) -> RedisServer:
    client = redis_server.client()
    client.flushall()
    client.close()
    return redis_server


@pytest.fixture
async def encoders(spec: VisionSpec) -> AsyncIterator[list[FakeEncoder]]:
    servers = [await FakeEncoder.started(spec) for _ in range(2)]
    yield servers
    await asyncio.gather(*(server.stop() for server in servers))


@pytest.fixture
async def decoders() -> AsyncIterator[list[FakeDecoder]]:
    servers = [await FakeDecoder.started() for _ in range(2)]
    yield servers
    await asyncio.gather(*(server.stop() for server in servers))


@pytest.fixture
def max_concurrent_requests() -> int:
    return 16


@pytest.fixture
def more_settings() -> dict[str, Any]:
    """Settings of the gateway that a test changes."""
    return {}


@pytest.fixture
async def client(
    model_dir: Path,
    prompts: PromptEncoder,
    redis: RedisServer,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
    max_concurrent_requests: int,
    more_settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Client]:
    # Loading takes a second, so the tests share one encoder of prompts.
    monkeypatch.setattr(PromptEncoder, "load", lambda *_: prompts)
    settings = GatewaySettings(
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        model_dir=model_dir,
        encoders=[encoder.address for encoder in encoders],
        decoders=[decoder.address for decoder in decoders],
        redis_url=redis.url,
        max_concurrent_requests=max_concurrent_requests,
        max_images=3,
        max_image_bytes=100_000,
        drain_seconds=5,
        **more_settings,
    )
    async with (
        running(GatewayTier(settings), settings) as addresses,
        grpc.aio.insecure_channel(addresses.grpc) as channel,
    ):
        assert addresses.http is not None
        yield Client(
            chat_pb2_grpc.ChatServiceStub(channel),
            settings,
            f"http://{addresses.http}",
            channel,
            addresses.grpc,
        )


@pytest.fixture
async def gateway(
    spec: VisionSpec,
    prompts: PromptEncoder,
    redis: RedisServer,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
) -> AsyncIterator[Harness]:
    """The request path on real gRPC and a real Redis, with all replicas ready."""
    harness = await Harness.started(spec, prompts, redis.url, encoders, decoders)
    yield harness
    await harness.stop()
