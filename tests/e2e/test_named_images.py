"""A picture is uploaded once: counted on the wire, between the client and running gateways."""

import asyncio
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from pixtral.v1 import chat_pb2, chat_pb2_grpc
from pixtral_client import AsyncClient, Client, InvalidRequest, NotFound, Unavailable
from pixtral_client.errors import from_rpc_error
from tests.e2e.byte_counter import ByteCounter
from tests.support.redis_server import RedisServer
from tests.support.stack.fleet import Tier
from tests.support.stack.new_picture import new_picture
from tests.support.stack.service import Service, wait_until

KEYS = {"acme": "key-of-acme", "rival": "key-of-rival"}
MAX_BYTES = 6_000_000
TURNS = 10


@dataclass(frozen=True, slots=True)
class Gateways:
    """Two on one Redis, with the encoder and decoder of `service`."""

    one: Tier
    other: Tier

    def client(self, tenant: str, target: str | None = None) -> Client:
        return Client(target or self.one.target, api_key=KEYS[tenant], timeout=120, max_retries=0)


@pytest.fixture(scope="module")
def gateways(
    checkpoint: Path,
    redis: RedisServer,
    service: Service,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateways]:
    directory = tmp_path_factory.mktemp("gateways")
    tenants = directory / "tenants.toml"
    tenants.write_text(
        "".join(
            f'[{name}]\nkeys = ["sha256:{hashlib.sha256(key.encode()).hexdigest()}"]\n'
            for name, key in KEYS.items()
        )
    )
    flags = (
        f"--model-dir={checkpoint}",
        f"--redis-url={redis.url}",
        f"--encoders={service.stack.addresses['encoder'].grpc}",
        f"--decoders={service.stack.addresses['decoder'].grpc}",
        f"--api-keys={tenants}",
        f"--max-image-bytes={MAX_BYTES}",
        "--listen=127.0.0.1:0",
    )
    with (
        Tier("pixtral_gateway", directory, *flags) as one,
        Tier("pixtral_gateway", directory, *flags) as other,
    ):
        yield Gateways(one.until_ready(), other.until_ready())


@pytest.fixture(scope="module")
def picture() -> bytes:
    """Noise, which nothing makes smaller: 4 MB."""
    out = io.BytesIO()
    noise = np.random.default_rng().integers(0, 256, (1160, 1160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "PNG")
    assert 4_000_000 < out.tell() < 4_200_000
    return out.getvalue()


@pytest.fixture
def empty(redis: RedisServer) -> RedisServer:
    flush(redis)
    return redis


def flush(redis: RedisServer) -> None:
    with redis.client() as client:
        client.flushall()


class Chat:
    """A conversation about one picture, as an application has it: all of it in every turn."""

    def __init__(self, picture: bytes) -> None:
        self._messages: list[dict[str, Any]] = []
        self._next: list[Any] = [picture, "What is this?"]

    def turn(self) -> list[dict[str, Any]]:
        self._messages.append({"role": "user", "content": self._next})
        return self._messages

    def said(self, text: str) -> None:
        self._messages.append({"role": "assistant", "content": text or "Yes."})
        self._next = [f"And then, {len(self._messages)}?"]


def converse(client: Client, chat: Chat, turns: int) -> None:
    for _ in range(turns):
        with client.stream(chat.turn(), max_tokens=4, temperature=0) as stream:
            list(stream)
        assert stream.completion is not None
        chat.said(stream.text)


def test_ten_turns_upload_a_picture_once(
    gateways: Gateways, empty: RedisServer, picture: bytes
) -> None:
    with (
        ByteCounter(gateways.one.target) as wire,
        gateways.client("acme", wire.address) as client,
    ):
        converse(client, Chat(picture), TURNS)
        assert len(picture) < wire.sent < 1.1 * len(picture)


async def test_so_do_ten_turns_of_asyncio(
    gateways: Gateways, empty: RedisServer, picture: bytes
) -> None:
    chat = Chat(picture)
    with ByteCounter(gateways.one.target) as wire:
        async with AsyncClient(
            wire.address, api_key=KEYS["acme"], timeout=120, max_retries=0
        ) as client:
            for _ in range(TURNS):
                chat.said((await client.chat(chat.turn(), max_tokens=4, temperature=0)).text)
        assert len(picture) < wire.sent < 1.1 * len(picture)


def test_emptied_redis_costs_one_more_upload(
    gateways: Gateways, empty: RedisServer, picture: bytes
) -> None:
    with (
        ByteCounter(gateways.one.target) as wire,
        gateways.client("acme", wire.address) as client,
    ):
        chat = Chat(picture)
        converse(client, chat, 2)
        flush(empty)
        converse(client, chat, 3)
        assert 2 * len(picture) < wire.sent < 2.2 * len(picture)


def test_without_redis_a_chat_goes_on(
    gateways: Gateways, empty: RedisServer, picture: bytes
) -> None:
    with gateways.client("acme") as client:
        chat = Chat(picture)
        converse(client, chat, 1)
        empty.stop()
        try:
            converse(client, chat, 2)
            with pytest.raises(Unavailable, match="cannot store images") as refused:
                client.put_image(picture)
            assert refused.value.retry_after
        finally:
            empty.start()

        def is_kept_again() -> bool:
            converse(client, chat, 1)
            with empty.client() as redis:
                return bool(redis.keys("pixtral:emb:*") and redis.keys("pixtral:image:*"))

        # Each tier leaves a Redis that failed alone for a second.
        wait_until(is_kept_again, "embedding and size kept")


def test_what_one_gateway_was_shown_another_knows(
    gateways: Gateways, empty: RedisServer, picture: bytes
) -> None:
    with gateways.client("acme") as client:
        first = client.chat([{"role": "user", "content": [picture]}], max_tokens=4, temperature=0)
    with (
        ByteCounter(gateways.other.target) as wire,
        gateways.client("acme", wire.address) as client,
    ):
        second = client.chat([{"role": "user", "content": [picture]}], max_tokens=4, temperature=0)
        assert wire.sent < 0.1 * len(picture), "so large that it is asked about first"
    assert second.token_ids == first.token_ids
    assert second.images[0].cached


def test_picture_that_was_put_is_answered_about_by_both(
    gateways: Gateways, empty: RedisServer
) -> None:
    data = new_picture(200, 100)
    with gateways.client("acme") as client:
        put = client.put_image(data)
    assert (put.sha256, put.width, put.height) == (hashlib.sha256(data).hexdigest(), 200, 100)
    question: list[dict[str, Any]] = [{"role": "user", "content": [put, "What is this?"]}]
    with gateways.client("acme", gateways.other.target) as client:
        named = client.chat(question, max_tokens=8, temperature=0)
        question[0]["content"][0] = data
        shown = client.chat(question, max_tokens=8, temperature=0)
    assert named.token_ids == shown.token_ids
    assert [image.tokens for image in named.images] == [put.tokens]
    assert [image.cached for image in (*named.images, *shown.images)] == [False, True]


def test_anothers_picture_is_as_unknown_as_one_that_never_was(
    gateways: Gateways, empty: RedisServer
) -> None:
    data = new_picture()
    with gateways.client("acme") as client:
        put = client.put_image(data)
        client.chat([{"role": "user", "content": [put]}], max_tokens=1)
    told = []
    with gateways.client("rival") as client:
        for sha256 in (put.sha256, "ab" * 32):
            content = [chat_pb2.ContentPart(image=chat_pb2.Image(sha256=sha256))]
            message = chat_pb2.Message(role=chat_pb2.ROLE_USER, content=content)
            told.append(_refusal(gateways, "rival", message))
        # The same bytes are its own picture, and encoded anew.
        answer = client.chat([{"role": "user", "content": [data]}], max_tokens=1)
    assert not answer.images[0].cached
    (known, unknown) = told
    assert isinstance(known, NotFound)
    assert (known.code, known.reason, known.message, known.violations) == (
        unknown.code,
        unknown.reason,
        unknown.message,
        unknown.violations,
    )
    assert known.reason == "IMAGE_NOT_FOUND"
    assert [each.field for each in known.violations] == ["messages[0].content[0].image.sha256"]


def _refusal(gateways: Gateways, tenant: str, message: chat_pb2.Message) -> Any:
    with grpc.insecure_channel(gateways.one.target) as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Complete(
                chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[message])),
                metadata=(("authorization", f"Bearer {KEYS[tenant]}"),),
                timeout=60,
            )
    return from_rpc_error(refused.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "IMAGE_EMPTY"),
        (b"garbage" * 1000, "IMAGE_FORMAT_UNSUPPORTED"),
        (b"\x89PNG\r\n\x1a\n" + bytes(MAX_BYTES), "IMAGE_TOO_LARGE"),
    ],
    ids=["empty", "garbage", "oversize"],
)
def test_uploads_that_are_no_pictures_are_refused(
    gateways: Gateways, empty: RedisServer, data: bytes, reason: str
) -> None:
    with gateways.client("acme") as client:
        with pytest.raises(InvalidRequest) as refused:
            client.put_image(data)
        assert refused.value.reason == reason
        assert [each.field for each in refused.value.violations] == ["data"]
    with empty.client() as redis:
        assert redis.dbsize() == 0


def test_picture_whose_header_lies_is_refused_when_it_is_encoded(
    gateways: Gateways, empty: RedisServer
) -> None:
    whole = new_picture(300, 200)
    with gateways.client("acme") as client:
        put = client.put_image(whole[: len(whole) // 2])
        with pytest.raises(InvalidRequest) as refused:
            client.chat([{"role": "user", "content": [put]}], max_tokens=1)
    assert refused.value.violations[0].field == "messages[0].content[0].image.sha256"


async def test_upload_that_is_cut_off_leaves_nothing(
    gateways: Gateways, empty: RedisServer, picture: bytes
) -> None:
    async def half() -> Any:
        yield chat_pb2.PutImageRequest(data=picture[: len(picture) // 2])
        await asyncio.Event().wait()

    def permits() -> float:
        return gateways.one.value("pixtral_gateway_permits_in_use")

    metadata = (("authorization", f"Bearer {KEYS['acme']}"),)
    async with grpc.aio.insecure_channel(gateways.one.target) as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        call = stub.PutImage(half(), metadata=metadata)
        await asyncio.to_thread(wait_until, lambda: permits() == 1, "an upload under way")
    assert call.cancelled()
    await asyncio.to_thread(wait_until, lambda: permits() == 0, "no upload under way")
    with empty.client() as redis:
        assert redis.dbsize() == 0
