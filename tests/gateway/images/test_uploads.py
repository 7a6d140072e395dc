"""PutImage, as a class and over gRPC."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from pixtral.v1 import chat_pb2
from pixtral_core.concurrency.deadline import Deadline
from pixtral_core.concurrency.shared_limit import SharedLimit
from pixtral_core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ServingError,
    Unavailable,
    from_rpc_error,
)
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_core.server import reception
from pixtral_gateway.images.image_reader import ImageReader
from pixtral_gateway.images.uploads import Uploads
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from pixtral_gateway.tenancy.admission import Admission
from pixtral_gateway.tenancy.tenants import Budget, Tenant, Tenants
from tests.support.fake_tiers import FakeDecoder, FakeEncoder
from tests.support.gateway_harness import SCOPE, Client, Harness, eventually, permits
from tests.support.gateway_pictures import image_named, picture, pieces, png_of, text, user
from tests.support.redis_server import RedisServer

CAT = picture(200, 150)
NAME = hashlib.sha256(CAT).hexdigest()


def requests(data: bytes, size: int = 1000) -> Iterator[chat_pb2.PutImageRequest]:
    for at in range(0, len(data), size):
        yield chat_pb2.PutImageRequest(data=data[at : at + size])


def kept(redis: RedisServer) -> int:
    with redis.client() as client:
        return len(client.keys("pixtral:*"))


async def refusal(
    client: Client, data: bytes, *, size: int = 1000, timeout: float | None = None
) -> ServingError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.stub.PutImage(requests(data, size), timeout=timeout)
    return from_rpc_error(refused.value)


@pytest.mark.parametrize("size", [97, 1000, 1 << 20])
async def test_image_that_is_put_in_pieces_can_be_named(
    client: Client, spec: VisionSpec, size: int
) -> None:
    response = await client.stub.PutImage(requests(CAT, size))

    assert response == chat_pb2.PutImageResponse(
        sha256=NAME, width=200, height=150, tokens=spec.grid(200, 150).placeholder_length
    )
    messages = [user(image_named(bytes.fromhex(response.sha256)), text("What is this?"))]
    whole = await client.stub.Complete(
        chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=messages))
    )
    assert whole.completion.images[0].sha256 == NAME
    assert whole.completion.images[0].tokens == response.tokens
    assert permits() == 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "IMAGE_EMPTY"),
        (b"no image at all", "IMAGE_FORMAT_UNSUPPORTED"),
        (CAT[:20], "IMAGE_MALFORMED"),
        (png_of(50_000, 50_000), "IMAGE_TOO_MANY_PIXELS"),
        (CAT + bytes(100_000), "IMAGE_TOO_LARGE"),
    ],
    ids=["empty", "text", "cut", "bomb", "large"],
)
async def test_what_no_request_may_hold_is_not_kept(
    client: Client, redis: RedisServer, data: bytes, reason: str
) -> None:
    refused = await refusal(client, data)

    assert isinstance(refused, InvalidRequest)
    assert refused.reason == reason
    assert [path for path, _ in refused.violations] == ["data"]
    assert kept(redis) == 0
    assert permits() == 0


async def test_endless_upload_is_refused_at_the_cap(client: Client) -> None:
    taken = 0

    async def endless() -> AsyncIterator[chat_pb2.PutImageRequest]:
        nonlocal taken
        while True:
            taken += 10_000
            yield chat_pb2.PutImageRequest(data=bytes(10_000))

    async def refusal() -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.stub.PutImage(endless(), timeout=60)
        return refused.value

    async with asyncio.timeout(120):
        # The client of grpc.aio says INTERNAL where its write fails before it has read the status.
        while (refused := await refusal()).code() is grpc.StatusCode.INTERNAL:
            taken = 0
    assert from_rpc_error(refused).reason == "IMAGE_TOO_LARGE"
    # No more than what the connection itself holds on its way.
    assert taken < 20_000_000


async def test_upload_that_is_cut_off_leaves_nothing(client: Client, redis: RedisServer) -> None:
    began = asyncio.Event()

    async def stops_midway() -> AsyncIterator[chat_pb2.PutImageRequest]:
        yield chat_pb2.PutImageRequest(data=CAT[:100])
        began.set()
        await asyncio.Event().wait()

    call = client.stub.PutImage(stops_midway())
    await began.wait()
    await eventually(lambda: permits() == 1)
    call.cancel()

    await eventually(lambda: permits() == 0)
    assert kept(redis) == 0
    assert (await client.stub.PutImage(requests(CAT))).sha256 == NAME


async def test_upload_that_never_ends_has_its_deadline(client: Client, redis: RedisServer) -> None:
    async def stalls() -> AsyncIterator[chat_pb2.PutImageRequest]:
        yield chat_pb2.PutImageRequest(data=CAT[:100])
        await asyncio.Event().wait()

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.stub.PutImage(stalls(), timeout=0.5)

    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: permits() == 0)
    assert kept(redis) == 0


async def stalled() -> AsyncIterator[bytes]:
    yield CAT[:100]
    await asyncio.Event().wait()


async def test_gateways_own_deadline_ends_it_too(gateway: Harness) -> None:
    with pytest.raises(DeadlineExceeded):
        await gateway.uploads.put(stalled(), Tenant(SCOPE), Deadline.after(0.05))
    assert gateway.admission.in_use == 0


async def test_without_redis_it_is_unavailable_with_a_time_to_retry(
    spec: VisionSpec,
    prompts: PromptEncoder,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
) -> None:
    gateway = await Harness.started(spec, prompts, "redis://127.0.0.1:1/0", encoders, decoders)
    with pytest.raises(Unavailable) as refused:
        await gateway.uploads.put(pieces(CAT), Tenant(SCOPE), Deadline.after(60))
    assert refused.value.retry_after
    await gateway.stop()


async def test_uploads_are_bounded_together(gateway: Harness, spec: VisionSpec) -> None:
    reader = ImageReader(spec, max_bytes=1 << 20, max_pixels=1 << 24)
    most, admission = len(CAT) + 1000, Admission(4, Tenants(None))
    uploads = Uploads(
        reader=reader,
        names=gateway.names,
        admission=admission,
        room=SharedLimit(most, has_shares=False),
    )
    finish = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield CAT[:2000]
        await finish.wait()
        yield CAT[2000:]

    tenant = Tenant(SCOPE)
    first = asyncio.create_task(uploads.put(slow(), tenant, Deadline.after(30)))
    await eventually(lambda: admission.in_use == 1)
    with pytest.raises(Overloaded) as refused:
        await uploads.put(pieces(CAT), tenant, Deadline.after(30))
    assert refused.value.retry_after
    finish.set()
    assert (await first).sha256.hex() == NAME
    assert (await uploads.put(pieces(CAT), tenant, Deadline.after(30))).sha256.hex() == NAME


async def test_uploads_count_against_a_tenants_limits(gateway: Harness) -> None:
    tenant = Tenant(SCOPE, requests_at_once=1, images=Budget(2))
    going = asyncio.create_task(gateway.uploads.put(stalled(), tenant, Deadline.after(30)))
    await eventually(lambda: gateway.admission.in_use == 1)
    with pytest.raises(Overloaded, match="limit of your requests"):
        await gateway.uploads.put(pieces(CAT), tenant, Deadline.after(30))
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    await gateway.uploads.put(pieces(CAT), tenant, Deadline.after(30))
    with pytest.raises(Overloaded, match="limit of your images"):
        await gateway.uploads.put(pieces(CAT), tenant, Deadline.after(30))
    assert gateway.admission.in_use == 0


async def test_one_that_stalls_leaves_room_to_the_others_and_is_ended(
    gateway: Harness, spec: VisionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ImageReader(spec, max_bytes=1 << 20, max_pixels=1 << 24)
    admission, room = Admission(64, ["eve", "bob"]), SharedLimit(8 * len(CAT), refusal="full")
    uploads = Uploads(reader=reader, names=gateway.names, admission=admission, room=room)
    eve, bob = Tenant("eve"), Tenant("bob")

    async def all_but_the_end() -> AsyncIterator[bytes]:
        yield CAT[:-1]
        await asyncio.Event().wait()

    monkeypatch.setattr(reception, "PACE_SECONDS", 600.0)
    stalls = [uploads.put(all_but_the_end(), eve, Deadline.after(60)) for _ in range(13)]
    going = [asyncio.create_task(each) for each in stalls]
    await eventually(lambda: sum(task.done() for task in going) == 7)
    for _ in range(3):
        await uploads.put(pieces(CAT), bob, Deadline.after(30))
    for task in going:
        task.cancel()
    await asyncio.gather(*going, return_exceptions=True)

    monkeypatch.setattr(reception, "PACE_SECONDS", 0.1)
    with pytest.raises(DeadlineExceeded, match="too slowly"):
        await uploads.put(all_but_the_end(), eve, Deadline.after(60))
    assert room.total == 0
    assert admission.in_use == 0
