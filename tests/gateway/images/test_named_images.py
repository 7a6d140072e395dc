import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY

from pixtral_core.cache.guarded_redis import GuardedRedis
from pixtral_gateway.images.named_images import KEEP_SECONDS, ImageName, ImageSize, NamedImages
from tests.support.fake_tiers import FINGERPRINT
from tests.support.gateway_harness import SCOPE, eventually, key_of
from tests.support.gateway_pictures import picture
from tests.support.redis_server import RedisServer

DATA = picture(40, 30)
SHA256 = hashlib.sha256(DATA).digest()
NAME = ImageName(SHA256, SCOPE)
SIZE = ImageSize(40, 30, len(DATA))


def opened(url: str) -> tuple[NamedImages, GuardedRedis]:
    lookups = GuardedRedis.from_url(url)
    return NamedImages(lookups, GuardedRedis.from_url(url)), lookups


@pytest.fixture
async def names(redis: RedisServer) -> AsyncIterator[NamedImages]:
    names, lookups = opened(redis.url)
    yield names
    await names.close()
    await lookups.close()


def damaged(operation: str) -> float:
    labels = {"operation": operation, "reason": "damaged"}
    return REGISTRY.get_sample_value("pixtral_embedding_store_failures_total", labels) or 0.0


async def kept(names: NamedImages) -> None:
    names.keep_sizes({NAME: SIZE})
    async with asyncio.timeout(60):
        while not await names.find([NAME], None):
            await asyncio.sleep(0.005)


async def test_size_that_was_kept_is_found_while_the_embedding_is_there(
    redis: RedisServer, names: NamedImages
) -> None:
    await kept(names)
    assert await names.find([NAME], FINGERPRINT) == {}

    with redis.client() as client:
        client.set(key_of(SHA256).redis_key, b"an embedding")
    other, lookups = opened(redis.url)
    assert await other.find([NAME], FINGERPRINT) == {NAME: SIZE}
    assert await other.find([NAME], "beef") == {}, "another model's"
    assert await other.get(NAME) is None
    await other.close()
    await lookups.close()


async def test_file_that_was_put_is_found_without_an_embedding(names: NamedImages) -> None:
    assert await names.put(NAME, SIZE, DATA)

    assert await names.find([NAME], FINGERPRINT) == {NAME: SIZE}
    assert await names.get(NAME) == DATA


async def test_what_is_another_scopes_is_not_found(names: NamedImages) -> None:
    assert await names.put(NAME, SIZE, DATA)
    others = ImageName(SHA256, "acme")

    assert await names.find([others, NAME], None) == {NAME: SIZE}
    assert await names.find([others], FINGERPRINT) == {}
    assert await names.get(others) is None


async def test_everything_expires_unless_it_is_named(
    redis: RedisServer, names: NamedImages
) -> None:
    assert await names.put(NAME, SIZE, DATA)
    keys = (NAME.record_key, NAME.file_key)
    with redis.client() as client:
        assert all(0 < client.ttl(key) <= KEEP_SECONDS for key in keys)
        for key in keys:
            client.expire(key, 60)
        await names.find([NAME], FINGERPRINT)
        assert all(client.ttl(key) > KEEP_SECONDS - 60 for key in keys)


@pytest.mark.parametrize(
    "value", [b"", b"garbage", bytes(56), None], ids=["empty", "short", "zeros", "another's"]
)
async def test_damaged_record_is_a_miss_counted_and_deleted(
    redis: RedisServer, names: NamedImages, value: bytes | None
) -> None:
    assert await names.put(NAME, SIZE, DATA)
    other = ImageName(bytes(32), SCOPE)
    assert await names.put(other, SIZE, DATA)
    with redis.client() as client:
        if value is None:
            value = client.get(other.record_key)
        client.set(NAME.record_key, value or b"")
        before = damaged("image_find")
        assert await names.find([NAME], FINGERPRINT) == {}
        assert damaged("image_find") == before + 1
        assert not client.exists(NAME.record_key)


async def test_one_bit_of_a_record_is_enough(redis: RedisServer, names: NamedImages) -> None:
    assert await names.put(NAME, SIZE, DATA)
    with redis.client() as client:
        record = bytearray(client.get(NAME.record_key) or b"")
        record[5] ^= 1
        client.set(NAME.record_key, bytes(record))
    assert await names.find([NAME], FINGERPRINT) == {}


async def test_damaged_file_is_a_miss_counted_and_deleted(
    redis: RedisServer, names: NamedImages
) -> None:
    assert await names.put(NAME, SIZE, DATA)
    with redis.client() as client:
        client.setrange(NAME.file_key, len(DATA) // 2, b"\0\1\2")
        before = damaged("image_get")
        assert await names.get(NAME) is None
        assert damaged("image_get") == before + 1
        assert not client.exists(NAME.file_key)


async def test_sizes_that_were_kept_together_are_all_found(names: NamedImages) -> None:
    other = ImageName(bytes(reversed(SHA256)), NAME.scope)
    sizes = {NAME: SIZE, other: ImageSize(SIZE.width + 1, SIZE.height, SIZE.nbytes)}
    names.keep_sizes(sizes)
    async with asyncio.timeout(60):
        while len(await names.find([*sizes], None)) < len(sizes):
            await asyncio.sleep(0.005)
    assert await names.find([*sizes], None) == sizes


async def test_without_redis_nothing_is_found_or_kept_and_nothing_raised() -> None:
    names, lookups = opened("redis://127.0.0.1:1/0")

    assert await names.find([NAME], FINGERPRINT) == {}
    assert not await names.put(NAME, SIZE, DATA)
    assert await names.get(NAME) is None
    names.keep_sizes({NAME: SIZE})
    await names.close()
    await lookups.close()


async def test_what_is_being_kept_ends_with_the_process(redis: RedisServer) -> None:
    names, lookups = opened(redis.url)
    before = len(asyncio.all_tasks())
    names.keep_sizes({NAME: SIZE})
    assert len(asyncio.all_tasks()) == before + 1
    await names.close()
    await eventually(lambda: len(asyncio.all_tasks()) == before)
    await lookups.close()
