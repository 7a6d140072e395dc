"""Both clients against a gateway in this process: the same calls, results and errors."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from pixtral.v1 import chat_pb2
from pixtral_client import (
    AsyncClient,
    Choice,
    Client,
    Completion,
    DeadlineExceeded,
    Delta,
    ImageReport,
    InvalidRequest,
    Logprob,
    Model,
    NotFound,
    Overloaded,
    PixtralError,
    Timings,
    Tls,
    TokenCount,
    TokenLogprobs,
    Unavailable,
    Usage,
    Violation,
)
from pixtral_client.requests import MAX_MESSAGE_BYTES
from tests.support.fake_gateway import BAD_IMAGE, TOO_MUCH, WORDS, FakeGateway, failure, serving

HELLO = [{"role": "user", "content": "Hello"}]
DEADLINE = 60.0


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()
    with serving(fake) as address:
        fake.address = address
        yield fake


@pytest.fixture
def client(gateway: FakeGateway) -> Iterator[Client]:
    with Client(gateway.address, timeout=10 * DEADLINE, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(gateway: FakeGateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(gateway.address, timeout=10 * DEADLINE, max_retries=0) as client:
        yield client


def answer(model: str) -> Completion:
    return Completion(
        id="call-1",
        model=model,
        text="A cat on a mat.",
        token_ids=(0, 1, 2, 3, 4),
        finish_reason="stop",
        usage=Usage(prompt_tokens=70, image_tokens=64, cached_tokens=32, completion_tokens=5),
        timings=Timings(queue=0.001, encode=0.25, time_to_first_token=1.5, total=2.0),
        images=(
            ImageReport(sha256="ab", width=640, height=480, tokens=64, cached=True, encode=0.0),
        ),
        logprobs=tuple(map(likely, range(5))),
        choices=(
            Choice(0, "A cat on a mat.", (0, 1, 2, 3, 4), "stop", tuple(map(likely, range(5)))),
        ),
    )


def likely(token: int) -> TokenLogprobs:
    """As the fake gateway has them for each token."""
    top = (Logprob(token, WORDS[token], -0.5), Logprob(99, "", -1.5))
    return TokenLogprobs(top[0], top)


SAMPLING: dict[str, Any] = {
    "max_tokens": 64,
    "min_tokens": 1,
    "temperature": 0.0,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.2,
    "frequency_penalty": 0.3,
    "seed": 7,
    "stop": ["\n", "END"],
    "stop_token_ids": [2],
    "ignore_eos": True,
    "logprobs": 2,
    "logit_bias": {7: -100.0, 9: 0.5},
    "bad_words": ["mat"],
    "allowed_token_ids": [1, 2],
    "n": 1,
    "prompt_logprobs": 0,
    "include_stop_str_in_output": True,
}


def test_chat(client: Client, gateway: FakeGateway) -> None:
    assert client.chat(HELLO, model="pixtral", **SAMPLING) == answer("pixtral")
    assert gateway.requests == [
        chat_pb2.CompleteRequest(
            chat=chat_pb2.Chat(
                model="pixtral",
                messages=[
                    chat_pb2.Message(
                        role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text="Hello")]
                    )
                ],
                sampling=chat_pb2.SamplingParams(**SAMPLING),
            )
        )
    ]


def test_stream(client: Client, gateway: FakeGateway) -> None:
    with client.stream(HELLO, **SAMPLING) as stream:
        assert stream.completion is None
        deltas = list(stream)
    assert [delta.text for delta in deltas] == WORDS
    assert deltas[0] == Delta(text="A ", token_ids=(0,), finish_reason=None, logprobs=(likely(0),))
    assert deltas[-1].finish_reason == "stop"
    assert stream.completion == answer("pixtral")
    (request,) = gateway.requests
    assert request.chat.sampling == chat_pb2.SamplingParams(**SAMPLING)


def test_choices_come_by_turns(client: Client, gateway: FakeGateway) -> None:
    gateway.choices = 2
    with client.stream(HELLO, n=2) as stream:
        deltas = list(stream)
        so_far = stream.text
    completion = stream.completion
    assert [delta.index for delta in deltas] == [0, 1] * len(WORDS)
    assert completion is not None
    assert [(choice.index, choice.text) for choice in completion.choices] == [
        (0, so_far),
        (1, so_far.upper()),
    ]
    assert completion.text == so_far == "".join(WORDS)
    assert client.chat(HELLO, n=2).choices == completion.choices


@pytest.mark.parametrize(
    ("last", "options"),
    [({}, {"continue_final_message": True}), ({"prefix": True}, {}), ({"prefix": False}, {})],
)
def test_an_answer_goes_on_from_its_beginning(
    client: Client, gateway: FakeGateway, last: Any, options: Any
) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "There are", **last}]
    client.chat(messages, **options)
    client.count_tokens(messages, **options)
    goes_on = last.get("prefix", True)
    assert [request.chat.continue_final_message for request in gateway.requests] == [goes_on] * len(
        gateway.requests
    )


def test_it_says_what_ended_an_answer(client: Client, gateway: FakeGateway) -> None:
    for given, told in (({"stop_string": "END"}, "END"), ({"stop_token_id": 0}, 0), ({}, None)):
        gateway.ending = given
        with client.stream(HELLO) as stream:
            *others, last = stream
        assert last.stop_reason == told
        assert not any(delta.stop_reason for delta in others)
        assert stream.completion is not None
        completion = client.chat(HELLO)
        answers: list[Any] = [stream.completion, completion, *completion.choices]
        for each in answers:
            assert each.stop_reason == told


def test_sampling_not_given_is_absent(client: Client, gateway: FakeGateway) -> None:
    client.chat(HELLO, temperature=None, stop="END")
    (request,) = gateway.requests
    assert request.chat.sampling == chat_pb2.SamplingParams(stop=["END"])


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"json_schema": {"type": "object"}}, {"json_schema": '{"type": "object"}'}),
        ({"json_schema": "{}"}, {"json_schema": "{}"}),
        ({"choice": ("yes", "no")}, {"choice": {"values": ["yes", "no"]}}),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"json_object": True}, {"json_object": True}),
        (
            {"json_schema": "{}", "disable_any_whitespace": True},
            {"json_schema": "{}", "disable_any_whitespace": True},
        ),
    ],
)
def test_structured_output(client: Client, gateway: FakeGateway, given: Any, sent: Any) -> None:
    client.chat(HELLO, structured_output=given)
    (request,) = gateway.requests
    assert request.chat.sampling == chat_pb2.SamplingParams(structured_output=sent)


@pytest.mark.parametrize(
    ("sampling", "error", "said"),
    [
        ({"structured_output": {}}, TypeError, "structured_output: takes exactly one of"),
        ({"structured_output": {"json": "{}"}}, TypeError, "structured_output: takes exactly one"),
        ({"temprature": 1.0}, TypeError, "unknown argument 'temprature'"),
        ({"max_tokens": -1}, ValueError, "max_tokens: "),
        ({"temperature": "hot"}, TypeError, "temperature: "),
        ({"stop": [1]}, TypeError, "stop: "),
    ],
)
def test_wrong_sampling_is_named(
    client: Client, gateway: FakeGateway, sampling: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        client.chat(HELLO, **sampling)
    assert gateway.requests == []


def test_count_and_models(client: Client) -> None:
    assert client.count_tokens(HELLO) == TokenCount(prompt_tokens=70, image_tokens=64)
    assert client.models() == [
        Model(name="pixtral", context_length=4096, max_images=8, max_image_bytes=2**20)
    ]


def test_large_images_fit(client: Client, gateway: FakeGateway) -> None:
    client.count_tokens([{"role": "user", "content": [bytes(40 * 2**20)]}])
    assert len(gateway.requests[-1].chat.messages[0].content[0].image.data) == 40 * 2**20


def test_leaving_a_stream_cancels_the_call(client: Client, gateway: FakeGateway) -> None:
    gateway.stuck = True
    for _ in client.stream(HELLO):
        break
    gc.collect()
    assert gateway.cancelled.wait(DEADLINE)


def test_closing_a_stream_cancels_the_call(client: Client, gateway: FakeGateway) -> None:
    gateway.stuck = True
    with client.stream(HELLO) as stream:
        next(stream)
    assert gateway.cancelled.wait(DEADLINE)
    assert list(stream) == []
    assert stream.completion is None


def test_details_of_an_error(client: Client, gateway: FakeGateway) -> None:
    gateway.failure = BAD_IMAGE
    with pytest.raises(InvalidRequest) as caught:
        client.chat(HELLO)
    error = caught.value
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "IMAGE_TRUNCATED"
    assert error.message == "invalid request"
    assert error.violations == (Violation("messages[1].content[0].image.data", "ends early"),)
    assert error.retry_after is None
    assert "messages[1].content[0].image.data: ends early" in str(error)

    gateway.failure = TOO_MUCH
    with pytest.raises(Overloaded, match=r"retry after 1\.5 s") as overloaded:
        list(client.stream(HELLO))
    assert overloaded.value.retry_after == 1.5


def test_a_message_above_the_limit_is_no_overload(client: Client) -> None:
    with pytest.raises(PixtralError) as caught:
        client.chat([{"role": "user", "content": [bytes(MAX_MESSAGE_BYTES + 1)]}])
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not isinstance(caught.value, Overloaded)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.INTERNAL, PixtralError),
    ],
)
def test_class_of_an_error(
    client: Client, gateway: FakeGateway, code: grpc.StatusCode, error: type[PixtralError]
) -> None:
    gateway.failure = failure(code, "no")
    calls = (client.chat, client.count_tokens, lambda messages: next(client.stream(messages)))
    for call in calls:
        with pytest.raises(PixtralError, match="no") as caught:
            call(HELLO)
        assert type(caught.value) is error
        assert caught.value.code is code
    with pytest.raises(error):
        client.models()


def test_timeout(client: Client, gateway: FakeGateway) -> None:
    gateway.stuck = True
    with pytest.raises(DeadlineExceeded):
        client.chat(HELLO, timeout=0.2)
    with pytest.raises(DeadlineExceeded):
        list(client.stream(HELLO, timeout=0.2))
    with Client(gateway.address, timeout=0.2) as impatient, pytest.raises(DeadlineExceeded):
        impatient.chat(HELLO)


def test_no_proxy_for_this_machine(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with Client(gateway.address, timeout=DEADLINE) as client:
        assert client.chat(HELLO).text == "A cat on a mat."


def test_nobody_there() -> None:
    with Client("127.0.0.1:1", max_retries=0) as client, pytest.raises(Unavailable):
        client.chat(HELLO)


def test_certificate_and_key_go_together(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="together"):
        Tls(certificate=tmp_path / "client.pem")


async def test_async_chat(async_client: AsyncClient, gateway: FakeGateway) -> None:
    assert await async_client.chat(HELLO, model="pixtral", **SAMPLING) == answer("pixtral")
    assert gateway.requests[0].chat.sampling == chat_pb2.SamplingParams(**SAMPLING)
    assert await async_client.count_tokens(HELLO) == TokenCount(70, 64)
    assert [model.name for model in await async_client.models()] == ["pixtral"]


async def test_async_reads_pictures_in_a_thread_and_converts_text_at_once(
    async_client: AsyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    turns = []
    to_thread = asyncio.to_thread

    async def counted(function: Any, *arguments: Any) -> Any:
        turns.append(function)
        return await to_thread(function, *arguments)

    monkeypatch.setattr(asyncio, "to_thread", counted)
    await async_client.chat(HELLO)
    assert not turns
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"a picture")
    await async_client.chat([{"role": "user", "content": [picture]}])
    assert len(turns) == 1


async def test_async_stream(async_client: AsyncClient) -> None:
    async with await async_client.stream(HELLO) as stream:
        assert [delta.text async for delta in stream] == WORDS
    assert stream.completion == answer("pixtral")


async def test_async_errors(async_client: AsyncClient, gateway: FakeGateway) -> None:
    gateway.failure = BAD_IMAGE
    with pytest.raises(InvalidRequest) as caught:
        await async_client.chat(HELLO)
    assert caught.value.reason == "IMAGE_TRUNCATED"
    assert caught.value.violations[0].field == "messages[1].content[0].image.data"
    gateway.failure = TOO_MUCH
    with pytest.raises(Overloaded):
        async for _ in await async_client.stream(HELLO):
            pass
    gateway.failure = failure(grpc.StatusCode.NOT_FOUND, "no")
    with pytest.raises(NotFound):
        await async_client.count_tokens(HELLO)
    with pytest.raises(NotFound):
        await async_client.models()


async def test_async_timeout(async_client: AsyncClient, gateway: FakeGateway) -> None:
    gateway.stuck = True
    with pytest.raises(DeadlineExceeded):
        await async_client.chat(HELLO, timeout=0.2)
    with pytest.raises(DeadlineExceeded):
        async for _ in await async_client.stream(HELLO, timeout=0.2):
            pass


async def heard(event: Any) -> bool:
    return await asyncio.to_thread(event.wait, DEADLINE)


async def test_leaving_an_async_stream_cancels_the_call(
    async_client: AsyncClient, gateway: FakeGateway
) -> None:
    gateway.stuck = True
    async for _ in await async_client.stream(HELLO):
        break
    gc.collect()
    assert await heard(gateway.cancelled)


async def test_closing_an_async_stream_cancels_the_call(
    async_client: AsyncClient, gateway: FakeGateway
) -> None:
    gateway.stuck = True
    async with await async_client.stream(HELLO) as stream:
        await anext(stream)
    assert await heard(gateway.cancelled)
    assert [delta async for delta in stream] == []


async def test_cancelling_the_task_cancels_the_call(
    async_client: AsyncClient, gateway: FakeGateway
) -> None:
    gateway.stuck = True
    started = asyncio.Event()

    async def read() -> None:
        async for _ in await async_client.stream(HELLO):
            started.set()

    task = asyncio.create_task(read())
    await asyncio.wait_for(started.wait(), DEADLINE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await heard(gateway.cancelled)


def test_every_call_shows_the_api_key(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [{"role": "user", "content": "Hello?"}]
    with Client(gateway.address, api_key="given") as client:
        client.chat(messages)
        list(client.stream(messages))
        client.count_tokens(messages)
        client.models()
    monkeypatch.setenv("PIXTRAL_API_KEY", "of-the-environment")
    with Client(gateway.address) as client:
        client.models()
    assert gateway.authorizations == ["Bearer given"] * 4 + ["Bearer of-the-environment"]


async def test_the_asyncio_client_shows_it_too(gateway: FakeGateway) -> None:
    async with AsyncClient(gateway.address, api_key="given") as client:
        await client.models()
        async with await client.stream([{"role": "user", "content": "Hello?"}]) as stream:
            async for _ in stream:
                pass
    assert gateway.authorizations == ["Bearer given"] * 2


@pytest.mark.parametrize(
    "target",
    [
        "gateway.example:50051",
        "127.example.org:50051",
        "127.0.0.1.example.org:50051",
        "localhost.example.org:50051",
        "127.1:50051",
        "[::2]:50051",
        "dns:///127.0.0.1.example.org:50051",
    ],
)
def test_an_api_key_is_not_sent_where_others_can_read_it(target: str) -> None:
    with pytest.raises(ValueError, match="an API key needs TLS"):
        Client(target, api_key="given")


@pytest.mark.parametrize("target", ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1"])
def test_an_api_key_is_sent_to_this_machine(target: str) -> None:
    with Client(target, api_key="given"):
        pass
