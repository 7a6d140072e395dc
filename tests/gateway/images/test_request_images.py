"""Requests that name images, on the gateway's whole path."""

import asyncio
import hashlib
from collections import Counter

import pytest
from prometheus_client import REGISTRY

from pixtral.v1 import chat_pb2
from pixtral_core.concurrency.deadline import Deadline
from pixtral_core.errors import FailedPrecondition, InvalidRequest, NotFound, ServingError
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_gateway.api.grpc.from_proto import read_conversation
from pixtral_gateway.images.named_images import ImageName
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from pixtral_gateway.tenancy.tenants import Budget, Tenant
from tests.support.fake_tiers import FINGERPRINT, FakeDecoder, FakeEncoder, answers, refuses
from tests.support.gateway_harness import SCOPE, Harness, key_of
from tests.support.gateway_pictures import image, image_named, picture, pieces, text, user
from tests.support.redis_server import RedisServer

CAT, DOG, FOX = (picture(40, 30, seed=seed) for seed in range(3))
QUESTION = text("What is this?")


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def named(data: bytes) -> chat_pb2.ContentPart:
    return image_named(sha(data))


def counted(result: str) -> float:
    labels = {"result": result}
    return REGISTRY.get_sample_value("pixtral_gateway_named_images_total", labels) or 0.0


def calls(encoders: list[FakeEncoder]) -> list[bytes]:
    return [key.image_sha256 for encoder in encoders for key in encoder.calls]


async def put(gateway: Harness, data: bytes, scope: str = SCOPE) -> None:
    await gateway.uploads.put(pieces(data), Tenant(scope), Deadline.after(30))


async def show(gateway: Harness, redis: RedisServer, *pictures: bytes) -> None:
    """As a request with them does: their embeddings are in Redis, and their sizes."""
    await gateway.answer(user(*map(image, pictures), QUESTION))
    with redis.client() as client:
        for data in pictures:
            client.set(key_of(sha(data)).redis_key, b"an embedding")
    names = [ImageName(sha(data), SCOPE) for data in pictures]
    async with asyncio.timeout(60):
        while len(await gateway.names.find(names, FINGERPRINT)) < len(names):
            await asyncio.sleep(0.005)


async def missing(
    gateway: Harness, *parts: chat_pb2.ContentPart, tenant: Tenant | None = None
) -> list[str]:
    with pytest.raises(ServingError) as refused:
        await gateway.answer(user(*parts), tenant=tenant)
    assert isinstance(refused.value, NotFound)
    assert refused.value.reason == "IMAGE_NOT_FOUND"
    assert gateway.admission.in_use == 0
    return [path for path, _ in refused.value.violations]


async def test_image_that_was_sent_can_be_named(
    gateway: Harness,
    redis: RedisServer,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
) -> None:
    await show(gateway, redis, CAT)
    found = counted("found")

    sent = await gateway.answer(user(image(CAT), QUESTION))
    answer = await gateway.answer(user(named(CAT), QUESTION))

    assert answer.finished.images == sent.finished.images
    assert answer.finished.images[0].cached
    assert answer.finished.usage == sent.finished.usage
    assert calls(encoders) == [sha(CAT)], "encoded the first time"
    (decoder,) = (decoder for decoder in decoders if decoder.calls)
    *_, as_sent, as_named = decoder.calls
    assert as_named.images == as_sent.images
    assert as_named.prompt_token_ids == as_sent.prompt_token_ids
    assert counted("found") == found + 1


async def test_image_can_be_named_in_the_request_that_holds_it(
    gateway: Harness, encoders: list[FakeEncoder]
) -> None:
    answer = await gateway.answer(user(named(CAT), image(DOG), named(DOG), image(CAT), named(CAT)))

    assert [report.sha256 for report in answer.finished.images] == [
        sha(data).hex() for data in (CAT, DOG, DOG, CAT, CAT)
    ]
    assert sorted(calls(encoders)) == sorted([sha(CAT), sha(DOG)])


async def test_every_image_that_is_not_there_is_named(
    gateway: Harness, redis: RedisServer, encoders: list[FakeEncoder]
) -> None:
    await show(gateway, redis, CAT)
    encoded, before = calls(encoders), counted("missing")

    paths = await missing(
        gateway, named(DOG), QUESTION, named(CAT), image(CAT), *[named(FOX)] * 7, named(DOG)
    )

    assert paths == [f"messages[0].content[{i}].image.sha256" for i in (0, *range(4, 12))]
    assert calls(encoders) == encoded
    assert counted("missing") == before + 2


async def test_image_that_was_put_is_encoded_when_it_is_named(
    gateway: Harness, encoders: list[FakeEncoder]
) -> None:
    await put(gateway, CAT)
    assert calls(encoders) == []

    answer = await gateway.answer(user(named(CAT), QUESTION, named(CAT)))

    assert calls(encoders) == [sha(CAT)]
    first, second = answer.finished.images
    assert first == second
    assert (first.width, first.height, first.cached) == (40, 30, False)


async def test_image_that_no_encoder_takes_is_not_kept(
    gateway: Harness, redis: RedisServer, encoders: list[FakeEncoder]
) -> None:
    for encoder in encoders:
        encoder.refusal = InvalidRequest("image", "is cut short", "IMAGE_MALFORMED")
    with pytest.raises(InvalidRequest):
        await gateway.answer(user(image(CAT)))
    for encoder in encoders:
        encoder.refusal = None
    await show(gateway, redis, DOG)
    with redis.client() as client:
        assert client.keys("pixtral:image:*") == [ImageName(sha(DOG), SCOPE).record_key.encode()]


async def test_image_whose_embedding_is_evicted_must_come_again(
    gateway: Harness, redis: RedisServer
) -> None:
    await show(gateway, redis, CAT)
    with redis.client() as client:
        client.delete(key_of(sha(CAT)).redis_key)

    assert await missing(gateway, named(CAT)) == ["messages[0].content[0].image.sha256"]
    await show(gateway, redis, CAT)
    await gateway.answer(user(named(CAT)))


def lost(index: int) -> FailedPrecondition:
    return FailedPrecondition("missing", "EMBEDDING_MISSING", {"images": str(index)})


async def test_embedding_missing_at_the_decoder_is_made_of_the_file(
    gateway: Harness,
    redis: RedisServer,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
) -> None:
    await show(gateway, redis, DOG)
    await put(gateway, CAT)
    with redis.client() as client:
        client.set(key_of(sha(CAT)).redis_key, b"an embedding")
    for decoder in decoders:
        decoder.behaviours = [refuses(lost(1)), answers]

    encoded = Counter(calls(encoders))

    answer = await gateway.answer(user(named(DOG), named(CAT), QUESTION))

    assert Counter(calls(encoders)) - encoded == Counter([sha(CAT)])
    assert [report.cached for report in answer.finished.images] == [True, False]


async def test_embedding_missing_at_the_decoder_and_no_file_is_not_found(
    gateway: Harness, redis: RedisServer, decoders: list[FakeDecoder]
) -> None:
    await show(gateway, redis, CAT, DOG)
    for decoder in decoders:
        decoder.behaviours = [refuses(lost(1)), answers]

    assert await missing(gateway, named(CAT), named(DOG)) == ["messages[0].content[1].image.sha256"]


async def test_anothers_image_is_as_unknown_as_one_that_never_was(
    gateway: Harness, redis: RedisServer
) -> None:
    await show(gateway, redis, CAT)
    await put(gateway, DOG)
    other = Tenant("acme")

    errors = []
    for data in (CAT, DOG, FOX):
        with pytest.raises(NotFound) as refused:
            await gateway.answer(user(named(data)), tenant=other)
        error = refused.value
        errors.append((error.reason, error.message, error.violations, error.metadata))
    assert errors[0] == errors[1] == errors[2]


async def test_without_redis_the_image_must_come_again_and_is_answered(
    spec: VisionSpec,
    prompts: PromptEncoder,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
) -> None:
    gateway = await Harness.started(spec, prompts, "redis://127.0.0.1:1/0", encoders, decoders)
    try:
        assert await missing(gateway, named(CAT)) == ["messages[0].content[0].image.sha256"]
        assert (await gateway.answer(user(image(CAT)))).text == "Hello world"
    finally:
        await gateway.stop()


async def test_what_was_not_found_is_not_counted_as_a_tenants_images(gateway: Harness) -> None:
    tenant = Tenant(SCOPE, images=Budget(2))

    for _ in range(5):
        await missing(gateway, named(CAT), named(DOG), tenant=tenant)
    await gateway.answer(user(image(CAT), image(DOG)), tenant=tenant)

    with pytest.raises(ServingError, match="limit of your images"):
        await gateway.answer(user(named(CAT)), tenant=tenant)


async def test_tokens_of_an_image_by_name_need_its_size_alone(
    gateway: Harness, redis: RedisServer
) -> None:
    await show(gateway, redis, CAT)
    with redis.client() as client:
        client.delete(key_of(sha(CAT)).redis_key)
    tenant = Tenant(SCOPE)

    counts = [
        await gateway.pipeline.count(
            read_conversation([user(part, QUESTION)], max_images=1), tenant
        )
        for part in (image(CAT), named(CAT))
    ]

    assert counts[0] == counts[1]


async def test_image_named_many_times_is_looked_up_once(
    gateway: Harness, redis: RedisServer
) -> None:
    await put(gateway, CAT)
    with redis.client() as client:
        client.config_resetstat()
        await gateway.answer(user(*[named(CAT)] * 8))
        stats = client.info("commandstats")
    assert stats["cmdstat_getex"]["calls"] == 1
    assert stats["cmdstat_get"]["calls"] == 1
