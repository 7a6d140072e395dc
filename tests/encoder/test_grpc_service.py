"""The encoder process over gRPC."""

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import torch
from prometheus_client import REGISTRY
from torch import Tensor

from pixtral.internal.v1 import encoder_pb2, encoder_pb2_grpc
from pixtral_core.cache import wire_format
from pixtral_core.cache.wire_format import DType
from pixtral_core.errors import ServingError, StartupError, from_rpc_error
from pixtral_core.server.channel import open_channel
from pixtral_encoder.tower import fp8
from pixtral_encoder.tower.tower import Staged, VisionTower
from tests.encoder.pictures import png, png_that_claims
from tests.encoder.served import DEADLINE, Client, serving
from tests.support.redis_server import RedisServer

# Seconds for a process that imports torch.
START_SECONDS = 240.0


@pytest.fixture
async def client(checkpoint_dir: Path, redis: RedisServer) -> AsyncIterator[Client]:
    async with serving(checkpoint_dir, redis.url) as client:
        yield client


@asynccontextmanager
async def refusal() -> AsyncIterator[list[ServingError]]:
    """Collects the error that the call inside is refused with."""
    refused: list[ServingError] = []
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        yield refused
    refused.append(from_rpc_error(raised.value))


def images_encoded() -> float:
    return REGISTRY.get_sample_value("pixtral_encoder_images_encoded_total") or 0.0


async def test_it_says_what_it_is(client: Client, checkpoint_dir: Path) -> None:
    info = await client.stub.GetEncoderInfo(encoder_pb2.GetEncoderInfoRequest(), timeout=DEADLINE)
    assert info == encoder_pb2.GetEncoderInfoResponse(
        model=checkpoint_dir.name,
        fingerprint=client.made_by,
        width=64,
        dtype="bf16",
        device="cpu",
    )


async def test_no_thread_but_the_towers_has_others_compute_at_its_side(client: Client) -> None:
    await client.encode(png(16, 16))
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [*seen, torch.get_num_threads()] == [1, 1]


async def test_it_says_how_often_it_has_answered(client: Client) -> None:
    request = encoder_pb2.GetEncoderInfoRequest()
    before = await client.stub.GetEncoderInfo(request, timeout=DEADLINE)
    await client.encode(png(16, 16))
    after = await client.stub.GetEncoderInfo(request, timeout=DEADLINE)
    assert after.responses == before.responses + 1


async def test_what_is_fetched_is_what_redis_holds_in_pieces_under_a_mebibyte(
    checkpoint_dir: Path, redis: RedisServer
) -> None:
    image = png(1024, 1024)
    async with serving(checkpoint_dir, redis.url, dtype="f32") as client:
        response = await client.encode(image)
        pieces = await client.fetch(image)
    assert (response.rows, response.cols, response.stored) == (64, 64, True)
    assert response.source == encoder_pb2.EMBEDDING_SOURCE_ENCODED
    assert len(pieces) > 1
    assert max(map(len, pieces)) < 1 << 20
    value = b"".join(pieces)
    with redis.client() as at_redis:
        assert at_redis.get(client.key(image).redis_key) == value
    embedding = wire_format.decode(client.key(image), value, width=64, dtype=DType.F32)
    assert (embedding.rows, embedding.cols) == (64, 64)


async def test_an_embedding_that_is_not_held_is_not_found(client: Client) -> None:
    async with refusal() as refused:
        await client.fetch(png())
    assert (refused[0].code, refused[0].reason) == (
        grpc.StatusCode.NOT_FOUND,
        "EMBEDDING_NOT_FOUND",
    )


async def test_twenty_calls_at_once_with_one_new_image_encode_it_once(client: Client) -> None:
    image = png(640, 480)
    before = images_encoded()
    responses = await asyncio.gather(*(client.encode(image) for _ in range(20)))
    assert images_encoded() == before + 1
    assert {(response.rows, response.cols) for response in responses} == {(30, 40)}


async def test_a_cancelled_call_leaves_the_others_undisturbed(client: Client) -> None:
    image = png(640, 480)
    before = images_encoded()
    calls = [asyncio.create_task(client.encode(image)) for _ in range(4)]
    await asyncio.sleep(0)
    calls.pop(0).cancel()
    await asyncio.gather(*calls)
    assert images_encoded() == before + 1


async def test_an_image_that_cannot_be_encoded_in_time_is_refused_at_once(
    checkpoint_dir: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, ahead = VisionTower.begin, 0.0

    def slowly(self: VisionTower, images: Sequence[Staged]) -> Callable[[], list[Tensor]]:
        nonlocal ahead
        ahead += 20
        return begin(self, images)

    monkeypatch.setattr(VisionTower, "begin", slowly)
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead)
    monkeypatch.setattr("pixtral_encoder.batcher.time", clock)
    async with serving(checkpoint_dir, redis.url) as client:
        # 1024 patches, by which the encoder knows that 4096 take 80 seconds.
        await client.encode(png(512, 512))
        before = images_encoded()
        async with refusal() as refused:
            await client.encode(png(1024, 1024), timeout=60)
        assert images_encoded() == before
        assert (await client.encode(png(1024, 1024), timeout=600)).stored
    assert (refused[0].code, refused[0].reason) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "TOO_LATE_TO_ENCODE",
    )


async def test_a_deadline_does_not_end_what_another_waits_for(
    checkpoint_dir: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, go = VisionTower.begin, threading.Event()
    go.set()

    def held(self: VisionTower, images: Sequence[Staged]) -> Callable[[], list[Tensor]]:
        assert go.wait(DEADLINE)
        return begin(self, images)

    monkeypatch.setattr(VisionTower, "begin", held)
    async with serving(checkpoint_dir, redis.url) as client:
        go.clear()
        # The first holds the device, and the second waits while its first caller's time passes.
        first = asyncio.create_task(client.encode(png(seed=1)))
        impatient = asyncio.create_task(client.encode(png(seed=2), timeout=0.5))
        patient = asyncio.create_task(client.encode(png(seed=2)))
        async with refusal() as refused:
            await impatient
        go.set()
        assert (await first).stored
        assert (await patient).stored
    assert refused[0].code == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_after_a_restart_nothing_is_encoded_again(
    checkpoint_dir: Path, redis: RedisServer
) -> None:
    image = png()
    async with serving(checkpoint_dir, redis.url) as client:
        await client.encode(image)
    before = images_encoded()
    async with serving(checkpoint_dir, redis.url) as client:
        response = await client.encode(image)
        assert (response.source, response.stored) == (encoder_pb2.EMBEDDING_SOURCE_REDIS, True)
    assert images_encoded() == before


async def test_without_redis_it_answers_and_is_fetched_from(checkpoint_dir: Path) -> None:
    image = png()
    with RedisServer() as redis:
        async with serving(checkpoint_dir, redis.url) as client:
            redis.stop()
            first = await client.encode(image)
            again = await client.encode(image)
            pieces = await client.fetch(image)
    assert (first.source, first.stored) == (encoder_pb2.EMBEDDING_SOURCE_ENCODED, False)
    assert (again.source, again.stored) == (encoder_pb2.EMBEDDING_SOURCE_LOCAL, False)
    embedding = wire_format.decode(client.key(image), b"".join(pieces), width=64, dtype=DType.BF16)
    assert (embedding.rows, embedding.cols) == (first.rows, first.cols)


@pytest.mark.parametrize("computed_in", [torch.bfloat16, torch.float32])
async def test_embeddings_have_the_dtype_that_is_set_whatever_they_are_computed_in(
    checkpoint_dir: Path,
    redis: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    computed_in: torch.dtype,
) -> None:
    monkeypatch.setattr("pixtral_encoder.process.compute_dtype", lambda *_: computed_in)
    caplog.set_level("INFO", logger="pixtral_encoder.process")
    image = png(64, 48)
    async with serving(checkpoint_dir, redis.url) as client:
        await client.encode(image)
        value = b"".join(await client.fetch(image))
        info = await client.stub.GetEncoderInfo(
            encoder_pb2.GetEncoderInfoRequest(), timeout=DEADLINE
        )
    assert info.dtype == "bf16"
    embedding = wire_format.decode(client.key(image), value, width=64, dtype=DType.BF16)
    assert (embedding.rows, embedding.cols) == (3, 4)
    name = str(computed_in).removeprefix("torch.")
    assert f"the vision tower computes in {name}: a core multiplies" in caplog.text


async def test_a_bad_image_names_the_field_and_the_next_call_is_served(
    client: Client, redis: RedisServer
) -> None:
    for image in (b"", b"not an image", png()[:200], png_that_claims(50_000, 50_000)):
        async with refusal() as refused:
            await client.encode(image)
        assert refused[0].code == grpc.StatusCode.INVALID_ARGUMENT
        assert [field for field, _ in refused[0].violations] == ["image"]
    with redis.client() as at_redis:
        assert at_redis.dbsize() == 0
    assert (await client.encode(png())).stored


async def test_a_key_that_is_not_the_images_or_not_a_key_is_refused(client: Client) -> None:
    async with refusal() as refused:
        await client.encode(png(), key=client.key(png(seed=1)))
    assert refused[0].violations[0][0] == "key.image_sha256"
    async with refusal() as refused:
        await client.stub.Encode(encoder_pb2.EncodeRequest(image=png()), timeout=DEADLINE)
    assert (refused[0].code, refused[0].violations[0][0]) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "key",
    )
    client.made_by = "0" * 32
    async with refusal() as refused:
        await client.encode(png())
    assert (refused[0].code, refused[0].reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "FINGERPRINT_MISMATCH",
    )


async def test_embeddings_of_8_bits_are_not_taken_for_others(
    checkpoint_dir: Path, redis: RedisServer
) -> None:
    image = png()
    async with serving(checkpoint_dir, redis.url) as client:
        await client.encode(image)
    async with serving(checkpoint_dir, redis.url, vision_fp8=True) as client:
        response = await client.encode(image)
    assert response.source == encoder_pb2.EMBEDDING_SOURCE_ENCODED
    with redis.client() as at_redis:
        values = {bytes(at_redis.get(name)) for name in at_redis.scan_iter()}
    assert len(values) == 2


async def test_where_there_are_no_products_of_8_bits_it_does_not_start(
    checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StartupError, match="vision_fp8 needs dtype bf16"):
        async with serving(checkpoint_dir, "redis://127.0.0.1:1", vision_fp8=True, dtype="f32"):
            pass
    monkeypatch.setattr(fp8, "is_possible", lambda device: False)
    with pytest.raises(StartupError, match="vision_fp8 needs an H100"):
        async with serving(checkpoint_dir, "redis://127.0.0.1:1", vision_fp8=True):
            pass


async def test_a_model_that_cannot_be_served_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"params\.json"):
        async with serving(tmp_path, "redis://127.0.0.1:1"):
            pass


async def info_once_ready(stub: Any) -> encoder_pb2.GetEncoderInfoResponse:
    while True:
        try:
            info: encoder_pb2.GetEncoderInfoResponse = await stub.GetEncoderInfo(
                encoder_pb2.GetEncoderInfoRequest()
            )
            return info
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.05)


async def test_the_process_serves_until_it_is_told_to_end(
    checkpoint_dir: Path, redis: RedisServer, tmp_path: Path
) -> None:
    address_file = tmp_path / "address.json"
    command = [sys.executable, "-m", "pixtral_encoder", "--listen", "127.0.0.1:0"]
    command += ["--model-dir", str(checkpoint_dir), "--address-file", str(address_file)]
    process = await asyncio.create_subprocess_exec(
        *command,
        env=os.environ | {"PIXTRAL_REDIS_URL": redis.url},
    )
    try:
        async with asyncio.timeout(START_SECONDS):
            while not address_file.exists():
                await asyncio.sleep(0.05)
            address = json.loads(address_file.read_text())["grpc"]
            async with open_channel(address, None) as channel:
                stub = encoder_pb2_grpc.EncoderServiceStub(channel)
                assert (await info_once_ready(stub)).model == checkpoint_dir.name
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
