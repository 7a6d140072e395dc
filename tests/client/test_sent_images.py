"""Pictures that the gateway has are named to it, and nobody who calls a client can tell."""

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from pixtral_client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    PixtralError,
    UploadedImage,
)
from pixtral_client.sent_images import LARGE_BYTES, MAX_KNOWN, MIN_BYTES, KnownImages
from tests.support.fake_gateway import (
    BAD_IMAGE,
    WORDS,
    FakeGateway,
    bad,
    failure,
    not_found,
    serving,
)

SMALL, MIDDLE, LARGE = (os.urandom(size) for size in (MIN_BYTES - 1, MIN_BYTES, LARGE_BYTES))
TEXT = "".join(WORDS)
DEADLINE = 60.0

# A call of either client, awaited: its answer's text.
Ask = Callable[[list[Any]], Awaitable[str]]


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()
    with serving(fake) as address:
        fake.address = address
        yield fake


@pytest.fixture
def client(gateway: FakeGateway) -> Iterator[Client]:
    with Client(gateway.address, timeout=DEADLINE, max_retries=0) as client:
        yield client


@pytest.fixture(params=["chat", "stream", "async chat", "async stream"])
async def ask(request: pytest.FixtureRequest, gateway: FakeGateway) -> AsyncIterator[Ask]:
    """Four ways to the same answer."""
    client = Client(gateway.address, timeout=DEADLINE)
    async_client = AsyncClient(gateway.address, timeout=DEADLINE)

    def stream(messages: list[Any]) -> str:
        return "".join(delta.text for delta in client.stream(messages))

    async def ask(messages: list[Any]) -> str:
        match request.param:
            case "chat":
                return (await asyncio.to_thread(client.chat, messages)).text
            case "stream":
                return await asyncio.to_thread(stream, messages)
            case "async chat":
                return (await async_client.chat(messages)).text
            case _:
                async with await async_client.stream(messages) as answer:
                    return "".join([delta.text async for delta in answer])

    yield ask
    client.close()
    await async_client.close()


def about(*content: Any) -> list[Any]:
    return [{"role": "user", "content": list(content)}]


def sent(gateway: FakeGateway) -> list[list[bytes | str]]:
    """The images of each request as they came: a file, or the name of one."""
    requests, gateway.requests = gateway.requests, []
    return [
        [
            part.image.data or part.image.sha256
            for message in request.chat.messages
            for part in message.content
            if part.HasField("image")
        ]
        for request in requests
    ]


def name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_picture_is_sent_once_in_a_conversation(ask: Ask, gateway: FakeGateway) -> None:
    turns = about(MIDDLE, "What is this?")
    assert await ask(turns) == TEXT
    for _ in range(2):
        turns += [{"role": "assistant", "content": TEXT}, *about("And this?")]
        assert await ask(turns) == TEXT
    assert sent(gateway) == [[MIDDLE], [name(MIDDLE)], [name(MIDDLE)]]


async def test_small_pictures_are_sent_as_they_are(ask: Ask, gateway: FakeGateway) -> None:
    for _ in range(2):
        await ask(about(SMALL, "What is this?"))
    assert sent(gateway) == [[SMALL], [SMALL]]


async def test_large_picture_is_asked_about_first(ask: Ask, gateway: FakeGateway) -> None:
    assert await ask(about(LARGE, "What is this?")) == TEXT
    assert sent(gateway) == [[name(LARGE)], [LARGE]]

    other = os.urandom(LARGE_BYTES)
    gateway.images.add(name(other))
    assert await ask(about(other, "What is this?")) == TEXT
    assert sent(gateway) == [[name(other)]]


async def test_only_what_is_not_there_any_more_comes_again(ask: Ask, gateway: FakeGateway) -> None:
    other = os.urandom(MIN_BYTES)
    question = about(MIDDLE, "Which is more,", other, SMALL)
    await ask(question)
    gateway.images.discard(name(other))
    sent(gateway)

    assert await ask(question) == TEXT
    assert sent(gateway) == [[name(MIDDLE), name(other), SMALL], [name(MIDDLE), other, SMALL]]
    assert await ask(question) == TEXT
    assert sent(gateway) == [[name(MIDDLE), name(other), SMALL]]


async def test_one_file_is_sent_once_in_a_request(ask: Ask, gateway: FakeGateway) -> None:
    question = about(MIDDLE, LARGE, "and once more", LARGE, MIDDLE)
    names = [name(MIDDLE), name(LARGE), name(LARGE), name(MIDDLE)]
    for _ in range(2):
        gateway.images.clear()
        assert await ask(question) == TEXT
    first, second, third, fourth = sent(gateway)
    assert first == [MIDDLE, *names[1:]]
    assert second == [MIDDLE, LARGE, *names[2:]]
    assert third == names
    assert fourth == [MIDDLE, LARGE, *names[2:]]


async def test_all_is_sent_where_pictures_are_lost_one_by_one(
    ask: Ask, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = os.urandom(MIN_BYTES)
    question = about(MIDDLE, other)
    await ask(question)
    sent(gateway)
    gateway.images.clear()
    look_at = gateway._look_at

    def tells_one_at_a_time(messages: Any, context: Any) -> None:
        for i, part in enumerate(messages[0].content):
            if part.image.sha256:
                field = f"messages[0].content[{i}].image.sha256"
                context.abort_with_status(grpc_status(field))
        look_at(messages, context)

    monkeypatch.setattr(gateway, "_look_at", tells_one_at_a_time)
    assert await ask(question) == TEXT
    names = [name(MIDDLE), name(other)]
    assert sent(gateway) == [names, [MIDDLE, names[1]], [MIDDLE, other]]


def grpc_status(field: str) -> Any:
    return rpc_status.to_status(not_found(field))


async def test_gateway_of_an_older_release_gets_the_bytes(ask: Ask, gateway: FakeGateway) -> None:
    gateway.is_old = True
    for _ in range(2):
        assert await ask(about(LARGE, MIDDLE, MIDDLE)) == TEXT
    assert sent(gateway) == [
        [name(LARGE), MIDDLE, name(MIDDLE)],
        *[[LARGE, MIDDLE, MIDDLE]] * 2,
    ]


def test_image_that_no_gateway_would_take_says_nothing_of_its_age(
    client: Client, gateway: FakeGateway
) -> None:
    client.chat(about(MIDDLE))
    gateway.failure = bad("messages[0].content[0].image")
    with pytest.raises(InvalidRequest):
        client.chat(about(MIDDLE))
    gateway.failure = None
    client.chat(about(MIDDLE))
    client.chat(about(MIDDLE))
    assert sent(gateway)[-1] == [name(MIDDLE)]


async def test_errors_are_those_of_the_picture(ask: Ask, gateway: FakeGateway) -> None:
    await ask(about(MIDDLE))
    gateway.failure = BAD_IMAGE
    with pytest.raises(InvalidRequest) as caught:
        await ask(about("Look:", MIDDLE))
    assert caught.value.reason == "IMAGE_TRUNCATED"
    gateway.failure = failure(grpc.StatusCode.NOT_FOUND, "no such model")
    with pytest.raises(NotFound, match="no such model"):
        await ask(about(MIDDLE))
    assert len(sent(gateway)) == 3, "neither is tried again"


async def test_gateway_that_never_finds_anything_is_not_asked_for_ever(
    ask: Ask, gateway: FakeGateway
) -> None:
    await ask(about(MIDDLE))
    sent(gateway)
    gateway.failure = not_found("messages[0].content[0].image.sha256")
    with pytest.raises(NotFound):
        await ask(about(MIDDLE))
    assert sent(gateway) == [[name(MIDDLE)], [MIDDLE]]


def test_picture_of_a_failed_call_is_not_taken_for_known(
    client: Client, gateway: FakeGateway
) -> None:
    gateway.failure = failure(grpc.StatusCode.UNAVAILABLE, "no")
    with pytest.raises(PixtralError):
        client.chat(about(MIDDLE))
    gateway.failure = None
    client.chat(about(MIDDLE))
    assert sent(gateway) == [[MIDDLE], [MIDDLE]]


def test_data_url_of_a_picture_is_named_as_its_file(client: Client, gateway: FakeGateway) -> None:
    url = "data:image/png;base64," + base64.b64encode(MIDDLE).decode()
    for content in ({"type": "image_url", "image_url": {"url": url}}, MIDDLE):
        client.chat(about(content))
    assert sent(gateway) == [[MIDDLE], [name(MIDDLE)]]


def test_malformed_data_url_goes_as_it_is(client: Client, gateway: FakeGateway) -> None:
    url = "data:image/png;base64," + "?" * MIN_BYTES
    client.chat(about({"type": "image_url", "image_url": {"url": url}}))
    assert gateway.requests[0].chat.messages[0].content[0].image.url == url


def test_tokens_are_counted_by_name_too(client: Client, gateway: FakeGateway) -> None:
    client.count_tokens(about(MIDDLE))
    client.count_tokens(about(MIDDLE))
    assert sent(gateway) == [[MIDDLE], [name(MIDDLE)]]


def test_all_tries_share_the_calls_time(client: Client, gateway: FakeGateway) -> None:
    gateway.stuck = True
    # Until there is time enough for the second to begin.
    for seconds in (0.5, 2.0, 10.0, 30.0):
        gateway.images.clear()
        with pytest.raises(DeadlineExceeded):
            client.chat(about(LARGE), timeout=seconds)
        tries = sent(gateway)
        if len(tries) == 2:
            break
    assert tries == [[name(LARGE)], [LARGE]]


def test_closed_stream_sends_nothing_more(client: Client, gateway: FakeGateway) -> None:
    stream = client.stream(about(LARGE))
    stream.close()
    assert list(stream) == []
    assert all(images == [name(LARGE)] for images in sent(gateway))


@pytest.mark.parametrize("size", [1, 300_000, LARGE_BYTES])
def test_picture_can_be_put(
    client: Client, gateway: FakeGateway, tmp_path: Path, size: int
) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(os.urandom(size))
    data = path.read_bytes()
    url = "data:image/png;base64," + base64.b64encode(data).decode()

    expected = UploadedImage(sha256=name(data), width=640, height=480, tokens=64)
    for form in (path, data, url):
        assert client.put_image(form) == expected
    assert [b"".join(pieces) for pieces in gateway.requests] == [data] * 3
    assert all(len(piece) <= 256 << 10 for pieces in gateway.requests for piece in pieces)
    gateway.requests.clear()

    client.chat(about(expected, "What is this?"))
    assert sent(gateway) == [[expected.sha256]]
    client.chat(about(path))
    assert sent(gateway) == [[data if size < MIN_BYTES else expected.sha256]]


async def test_picture_can_be_put_from_asyncio(gateway: FakeGateway) -> None:
    async with AsyncClient(gateway.address, timeout=DEADLINE, max_retries=0) as client:
        put = await client.put_image(MIDDLE)
        await client.chat(about(put, MIDDLE))
    assert put.sha256 == name(MIDDLE)
    assert gateway.requests.pop(0) == [MIDDLE]
    assert sent(gateway) == [[put.sha256] * 2]


def test_put_that_fails_tells_why(client: Client, gateway: FakeGateway) -> None:
    gateway.failure = BAD_IMAGE
    with pytest.raises(InvalidRequest):
        client.put_image(MIDDLE)
    with pytest.raises(ValueError, match="data: URL"):
        client.put_image("data:,no")


def test_picture_that_was_put_elsewhere_and_is_gone_is_not_found(client: Client) -> None:
    with pytest.raises(NotFound) as caught:
        client.chat(about(UploadedImage("ab" * 32, 1, 1, 1)))
    assert caught.value.reason == "IMAGE_NOT_FOUND"


def test_the_longest_unused_is_forgotten_first() -> None:
    known = KnownImages()
    for number in range(MAX_KNOWN):
        known.add(str(number))
    known.add("0")
    known.add("new")
    assert "0" in known
    assert "new" in known
    assert "1" not in known
    known.forget("0")
    assert "0" not in known
