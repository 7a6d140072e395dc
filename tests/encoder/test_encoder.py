"""The encoder without the wire: a real tower, a real Redis."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY

from pixtral_core.cache import wire_format
from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.cache.embedding_store import EmbeddingStore
from pixtral_core.cache.wire_format import DType
from pixtral_core.errors import FailedPrecondition, InvalidRequest, Overloaded, ServingError
from pixtral_core.model.vision_spec import VisionSpec, read_params
from pixtral_encoder.batcher import Batcher, Begin
from pixtral_encoder.encoder import Encoder, Source
from pixtral_encoder.image.preprocess import OpenedImage, Preprocessor
from pixtral_encoder.tower.tower import Staged, VisionTower
from pixtral_encoder.tower.weights import load_tower
from tests.encoder.pictures import file_of, large_png, picture, png, png_that_claims
from tests.support.redis_server import RedisServer

FINGERPRINT = "f00d"
MIB = 1 << 20

Make = Callable[..., Encoder]


def key_of(image: bytes, scope: str = "public", fingerprint: str = FINGERPRINT) -> EmbeddingKey:
    return EmbeddingKey(hashlib.sha256(image).digest(), fingerprint, scope)


def images_encoded() -> float:
    return REGISTRY.get_sample_value("pixtral_encoder_images_encoded_total") or 0.0


def requests(result: str) -> float:
    return REGISTRY.get_sample_value("pixtral_embedding_requests_total", {"result": result}) or 0.0


@pytest.fixture
def spec(checkpoint_dir: Path) -> VisionSpec:
    return VisionSpec.from_params(read_params(checkpoint_dir))


@pytest.fixture
def tower(checkpoint_dir: Path, spec: VisionSpec) -> VisionTower:
    return load_tower(checkpoint_dir, spec, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
async def make(redis: RedisServer, spec: VisionSpec, tower: VisionTower) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        def made(
            *,
            begin: Begin[Staged] = tower.begin,
            queue_images: int = 100,
            queue_bytes: int = 100 * MIB,
            cache_bytes: int = 64 * MIB,
        ) -> Encoder:
            encoder = Encoder(
                spec=spec,
                dtype=DType.F32,
                fingerprint=FINGERPRINT,
                preprocessor=Preprocessor(
                    spec, workers=2, max_pixels=64_000_000, timeout_seconds=30
                ),
                tower=tower,
                batcher=Batcher(
                    begin,
                    batch_patches=16_384,
                    queue_patches=65_536,
                    device_lost=asyncio.Event(),
                ),
                store=EmbeddingStore.from_url(redis.url, width=spec.width, dtype=DType.F32),
                cache_bytes=cache_bytes,
                queue_images=queue_images,
                queue_bytes=queue_bytes,
                max_image_bytes=20 * MIB,
                images_decoding=2,
            )
            stack.push_async_callback(encoder.close)
            return encoder

        yield made


@pytest.fixture
def encoder(make: Make) -> Encoder:
    return make()


def stored(redis: RedisServer) -> dict[bytes, bytes]:
    with redis.client() as client:
        return {name: client.get(name) for name in client.scan_iter()}


async def test_an_image_in_low_detail_is_another_embedding(
    encoder: Encoder, redis: RedisServer, spec: VisionSpec, tower: VisionTower
) -> None:
    size = spec.max_image_size
    image = png(size, size // 2)
    low = replace(key_of(image), low_detail=True)
    whole = await encoder.encode(key_of(image), image)
    result = await encoder.encode(low, image)

    assert result.source is Source.ENCODED
    assert result.grid == spec.grid(size // 2, size // 4)
    assert result.grid != whole.grid
    values = stored(redis)
    assert set(values) == {key_of(image).redis_key.encode(), low.redis_key.encode()}
    value = values[low.redis_key.encode()]
    embedding = wire_format.decode(low, value, width=spec.width, dtype=DType.F32)
    half = replace(spec, max_image_size=size // 2)
    preprocessor = Preprocessor(half, workers=1, max_pixels=10**7, timeout_seconds=30)
    pixels = await preprocessor.pixels(await preprocessor.open(image, bytes(32)))
    preprocessor.close()
    (expected,) = tower.embed([tower.stage(pixels)])
    assert bytes(embedding.data) == expected.numpy().tobytes()


async def test_what_is_stored_and_held_is_the_towers_output(
    encoder: Encoder, redis: RedisServer, spec: VisionSpec, tower: VisionTower
) -> None:
    image = png(333, 77)
    result = await encoder.encode(key_of(image), image)
    assert (result.source, result.stored) == (Source.ENCODED, True)
    assert (result.grid.rows, result.grid.cols) == (5, 21)
    values = stored(redis)
    assert set(values) == {key_of(image).redis_key.encode()}
    (value,) = values.values()
    assert encoder.held(key_of(image)) == value
    embedding = wire_format.decode(key_of(image), value, width=spec.width, dtype=DType.F32)
    assert (embedding.rows, embedding.cols) == (5, 21)
    preprocessor = Preprocessor(spec, workers=1, max_pixels=10**6, timeout_seconds=30)
    pixels = await preprocessor.pixels(await preprocessor.open(image, bytes(32)))
    preprocessor.close()
    (expected,) = tower.embed([tower.stage(pixels)])
    assert np.array_equal(np.frombuffer(embedding.data, "<f4"), expected.numpy().ravel())


async def test_concurrent_requests_for_one_new_image_encode_it_once(encoder: Encoder) -> None:
    image = png(640, 480)
    before, answered = images_encoded(), requests("encoded")
    results = await asyncio.gather(*(encoder.encode(key_of(image), image) for _ in range(20)))
    assert images_encoded() == before + 1
    assert {result.source for result in results} == {Source.ENCODED}
    assert all(result.stored for result in results)
    assert requests("encoded") == answered + 20


async def test_the_same_image_again_is_local(encoder: Encoder) -> None:
    image = png()
    first = await encoder.encode(key_of(image), image)
    before = images_encoded()
    again = await encoder.encode(key_of(image), image)
    assert (again.source, again.stored, again.grid) == (Source.LOCAL, True, first.grid)
    assert images_encoded() == before


async def test_a_restarted_encoder_finds_in_redis_what_the_last_one_made(
    make: Make, redis: RedisServer
) -> None:
    image = png()
    first = await make().encode(key_of(image), image)
    before = images_encoded()
    restarted = make()
    again = await restarted.encode(key_of(image), image)
    assert (again.source, again.stored, again.grid) == (Source.REDIS, True, first.grid)
    assert images_encoded() == before
    # For decoders that cannot read it there.
    with redis.client() as client:
        assert restarted.held(key_of(image)) == client.get(key_of(image).redis_key)


async def test_what_redis_holds_damaged_is_encoded_anew(
    encoder: Encoder, redis: RedisServer
) -> None:
    cut_short, no_string = png(320, 240), png(240, 320)
    with redis.client() as client:
        client.set(key_of(cut_short).redis_key, b"PXE1")
        client.rpush(key_of(no_string).redis_key, b"PXE1")
    for image in (cut_short, no_string):
        result = await encoder.encode(key_of(image), image)
        assert (result.source, result.stored) == (Source.ENCODED, True)
    for image in (cut_short, no_string):
        assert stored(redis)[key_of(image).redis_key.encode()] == encoder.held(key_of(image))


async def test_redis_gets_back_what_it_lost(encoder: Encoder, redis: RedisServer) -> None:
    image = png()
    await encoder.encode(key_of(image), image)
    kept = stored(redis)
    before = images_encoded()
    with redis.client() as client:
        client.flushall()
    again = await encoder.encode(key_of(image), image)
    assert (again.source, again.stored) == (Source.LOCAL, True)
    assert stored(redis) == kept
    assert images_encoded() == before


async def test_scopes_share_nothing(encoder: Encoder, redis: RedisServer) -> None:
    image = png()
    before = images_encoded()
    for scope in ("one", "two"):
        result = await encoder.encode(key_of(image, scope), image)
        assert result.source == Source.ENCODED
    assert images_encoded() == before + 2
    assert len(stored(redis)) == 2


async def test_one_cancelled_request_leaves_the_others_undisturbed(encoder: Encoder) -> None:
    image = png(640, 480)
    before = images_encoded()
    tasks = [asyncio.create_task(encoder.encode(key_of(image), image)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks.pop(0).cancel()
    results = await asyncio.gather(*tasks)
    assert [result.source for result in results] == [Source.ENCODED] * 2
    assert images_encoded() == before + 1


async def test_an_image_that_nobody_waits_for_is_not_encoded_and_leaves_no_trace(
    make: Make, redis: RedisServer
) -> None:
    encoder = make(queue_images=1)
    image, other = png(640, 480), png(32, 32)
    before = images_encoded()
    tasks = [asyncio.create_task(encoder.encode(key_of(image), image)) for _ in range(2)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    # The one place in the queue is free again.
    await encoder.encode(key_of(other), other)
    assert images_encoded() == before + 1
    assert encoder.held(key_of(image)) is None
    assert len(stored(redis)) == 1


async def test_too_many_different_images_are_refused_and_more_of_one_are_not(make: Make) -> None:
    encoder = make(queue_images=2)
    images = [png(640, 480, seed) for seed in range(3)]
    waiting = [
        asyncio.create_task(encoder.encode(key_of(image), image))
        for image in (images[0], images[1], images[1])
    ]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await encoder.encode(key_of(images[2]), images[2])
    await asyncio.gather(*waiting)
    assert (await encoder.encode(key_of(images[2]), images[2])).source == Source.ENCODED


async def test_more_bytes_of_images_than_wait_are_refused_also_of_the_same_image(
    make: Make,
) -> None:
    image, other = png(640, 480), png(32, 32)
    encoder = make(queue_bytes=2 * len(image))
    waiting = [asyncio.create_task(encoder.encode(key_of(image), image)) for _ in range(2)]
    await asyncio.sleep(0)
    for one_more in (image, other):
        with pytest.raises(Overloaded):
            await encoder.encode(key_of(one_more), one_more)
    waiting.pop().cancel()
    await asyncio.gather(*waiting)
    assert (await encoder.encode(key_of(other), other)).source == Source.ENCODED
    # An image that is alone has room, whatever its size.
    larger = png(1024, 1024, 1)
    assert len(larger) > 2 * len(image)
    assert (await encoder.encode(key_of(larger), larger)).source == Source.ENCODED


async def test_numbers_that_are_not_finite_are_never_stored(make: Make, redis: RedisServer) -> None:
    encoder = make(begin=lambda images: lambda: [torch.full((12, 64), torch.nan) for _ in images])
    image = png(64, 48)
    with pytest.raises(ServingError) as refused:
        await encoder.encode(key_of(image), image)
    assert refused.value.reason == "EMBEDDING_NOT_FINITE"
    assert encoder.held(key_of(image)) is None
    assert stored(redis) == {}


JPEG = file_of(picture(400, 300), "JPEG")
BAD_IMAGES = {
    "nothing": (b"", "IMAGE_EMPTY"),
    "garbage": (b"\xde\xad\xbe\xef" * 100, "IMAGE_FORMAT_UNSUPPORTED"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "IMAGE_MALFORMED"),
    "a bomb": (png_that_claims(50_000, 50_000), "IMAGE_TOO_MANY_PIXELS"),
    "too many bytes": (png() + bytes(20 * MIB), "IMAGE_TOO_LARGE"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
async def test_a_bad_image_is_refused_and_nothing_is_kept(
    encoder: Encoder, redis: RedisServer, name: str
) -> None:
    image, reason = BAD_IMAGES[name]
    before = images_encoded()
    with pytest.raises(InvalidRequest) as refused:
        await encoder.encode(key_of(image), image)
    assert refused.value.reason == reason
    assert [field for field, _ in refused.value.violations] == ["image"]
    assert images_encoded() == before
    assert encoder.held(key_of(image)) is None
    assert stored(redis) == {}
    assert (await encoder.encode(key_of(png()), png())).source == Source.ENCODED


@pytest.mark.parametrize("width", [64, 1024], ids=["small", "above a mebibyte"])
async def test_another_images_key_is_refused(
    encoder: Encoder, redis: RedisServer, width: int
) -> None:
    image = png(width, width // 2)
    with pytest.raises(InvalidRequest) as refused:
        await encoder.encode(key_of(png(seed=1)), image)
    assert refused.value.reason == "KEY_MISMATCH"
    assert stored(redis) == {}


async def test_another_models_key_is_refused(encoder: Encoder) -> None:
    with pytest.raises(FailedPrecondition):
        await encoder.encode(key_of(png(), fingerprint="beef"), png())


async def test_tenants_images_are_decoded_by_turns(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, decoded, go = make(), list[tuple[int, int]](), asyncio.Event()
    pixels = Preprocessor.pixels

    async def noted(preprocessor: Preprocessor, opened: OpenedImage) -> object:
        decoded.append(opened.header.stored_size)
        await go.wait()
        return await pixels(preprocessor, opened)

    monkeypatch.setattr(Preprocessor, "pixels", noted)
    files = [png(64, 32 + number) for number in range(8)]
    tasks = [asyncio.create_task(encoder.encode(key_of(each, scope="eve"), each)) for each in files]
    async with asyncio.timeout(30):
        while len(decoded) < 2:
            await asyncio.sleep(0.001)
    one = png(96, 96)
    tasks.append(asyncio.create_task(encoder.encode(key_of(one, scope="bob"), one)))
    # As long as it takes to come to where the others wait.
    async with asyncio.timeout(30):
        while "bob" not in {each.tenant for each in encoder._decoding._waiting}:
            await asyncio.sleep(0.001)
    go.set()
    await asyncio.gather(*tasks)
    assert (96, 96) in decoded[:6]


async def test_large_images_leave_a_process_to_other_images(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, go = make(), asyncio.Event()
    decoding: list[bool] = []
    pixels = Preprocessor.pixels

    async def held(preprocessor: Preprocessor, opened: OpenedImage) -> object:
        decoding.append(preprocessor.is_large(opened))
        if decoding[-1]:
            await go.wait()
        return await pixels(preprocessor, opened)

    monkeypatch.setattr(Preprocessor, "pixels", held)
    files = [large_png(3000, 3000 + number) for number in range(3)]
    tasks = [asyncio.create_task(encoder.encode(key_of(each, scope="eve"), each)) for each in files]
    async with asyncio.timeout(60):
        while len(encoder._large._waiting) < 2:
            await asyncio.sleep(0.001)
        assert decoding == [True]
        one = png(96, 96)
        assert (await encoder.encode(key_of(one, scope="bob"), one)).source is Source.ENCODED
    assert decoding == [True, False]
    go.set()
    await asyncio.gather(*tasks)
