"""Sends fuzz to running services, and looks at how each call ends."""

import asyncio
import contextlib
import hashlib
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
from google.protobuf.message import Message

from pixtral.internal.v1 import decoder_pb2, encoder_pb2
from pixtral.v1 import chat_pb2
from tests.fuzz.messages import Messages
from tests.fuzz.openai import WORD, Bodies
from tests.fuzz.pictures import Mutator, originals
from tests.support.openapi import events_of

CHAT, TOKENIZE = "/v1/chat/completions", "/tokenize"
DEADLINE = 30.0
AT_ONCE = 4
# An answer is read so far and then let go.
MAX_RESPONSES = 12
NAMED = {503: "unavailable", 504: "deadline_exceeded"}
KINDS = {
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "rate_limit_error",
    "server_error",
}
CLEAN = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


# This client's words for a call that was answered, and over, before its second message was sent.
UNSENT = "Internal error from Core"
REGRESSIONS = Path(__file__).parent / "regressions"


def replayed(name: str) -> list[bytes]:
    """Inputs that have shown a mistake once."""
    return [path.read_bytes() for path in sorted((REGRESSIONS / name).glob("*"))]


@dataclass(slots=True)
class Found:
    """How calls ended, and those that ended as none should."""

    endings: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[str, bytes]] = field(default_factory=list)

    def add(self, ending: str, problem: str | None, sent: bytes) -> None:
        self.endings[ending] += 1
        if problem is not None:
            self.bad.append((problem, sent))


@dataclass(frozen=True, slots=True)
class Limit:
    """The end of a run: a number of calls, or a time."""

    count: int | None = None
    seconds: float | None = None

    async def each(self, call: Callable[[int], Awaitable[None]]) -> None:
        until = None if self.seconds is None else time.monotonic() + self.seconds
        numbers = itertools.count() if self.count is None else iter(range(self.count))

        async def worker() -> None:
            for number in numbers:
                if until is not None and time.monotonic() > until:
                    return
                await call(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(worker())


async def fuzz_openai(url: str, seed: int, limit: Limit) -> Found:
    """Bodies of OpenAI requests. A good one in between is answered as at first."""
    found, bodies = Found(), Bodies(seed)
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=DEADLINE) as http:
        expected = await good_answer(http)

        async def call(number: int) -> None:
            body = bodies.next()
            path = TOKENIZE if number % 6 == 5 else CHAT
            try:
                async with asyncio.timeout(DEADLINE):
                    response = await http.post(
                        path, content=body, headers={"content-type": "application/json"}
                    )
            except (httpx.HTTPError, TimeoutError) as error:
                found.add(type(error).__name__, repr(error), body)
                return
            found.add(f"{path} {response.status_code}", problem_of(response), body)
            if number % 200 == 199:
                assert await good_answer(http) == expected, "a good answer changed"

        await limit.each(call)
        assert await good_answer(http) == expected, "a good answer changed"
    return found


async def good_answer(http: httpx.AsyncClient) -> str:
    body = {
        "messages": [{"role": "user", "content": "Hello?"}],
        "temperature": 0,
        "max_tokens": 3,
    }
    choices = (await http.post(CHAT, json=body)).raise_for_status().json()["choices"]
    return str(choices[0]["message"]["content"])


# The text in the last event of a stream: OpenAI's, that of a response, that of Anthropic's
# messages.
ENDS = (
    "data: [DONE]",
    "event: response.completed",
    "event: response.incomplete",
    "event: response.failed",
    "event: message_stop",
    "event: error",
)
ANTHROPIC_KINDS = {
    "invalid_request_error",
    "authentication_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "overloaded_error",
    "timeout_error",
}


def problem_of(response: httpx.Response) -> str | None:
    """The parts of an answer that none may have."""
    status = response.status_code
    if status == 200 and response.headers["content-type"].startswith("text/event-stream"):
        if not any(end in response.text for end in ENDS):
            return "a stream without an end"
        errors = [event for event in events_of(response.text) if "error" in event]
        return _shape_of(errors[0], 200) if errors else None
    if status == 200:
        return None
    try:
        return _shape_of(response.json(), status)
    except ValueError:
        return f"{status} without JSON"


def _shape_of(told: Any, status: int) -> str | None:
    error = told.get("error") if isinstance(told, dict) else None
    if isinstance(error, dict) and told.get("type") == "error":
        # Anthropic's, which has the field in the message, and no code.
        is_named = error.get("type") in ANTHROPIC_KINDS and bool(error.get("message"))
        if WORD in json.dumps(error):
            return f"{status} repeats what was sent: {error}"
        return None if is_named and error.keys() == {"message", "type"} else f"{status}: {error}"
    if not isinstance(error, dict) or error.keys() != {"message", "type", "param", "code"}:
        return f"{status} is not of OpenAI's shape"
    if WORD in json.dumps(error):
        return f"{status} repeats what was sent: {error}"
    if error["type"] not in KINDS or not error["code"] or not error["message"]:
        return f"{status} says nothing: {error}"
    is_server = status >= 500 or error["type"] == "server_error"
    if is_server and error["code"] not in NAMED.values():
        return f"{status}: {error}"
    return None


HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 54\r\n\r\n{"messages":[{"role":"user","content":"xylophone?"}]}  '
)
LINES = [i + 2 for i in range(len(HEAD)) if HEAD[i : i + 2] == b"\r\n"]
PIECES = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b":",
        b" ",
        b"\xff",
        b"%ff",
        b"%00",
        b"//",
        b"/../",
        b"?a=%",
        b"#",
    ),
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
    b"Connection: close\r\n",
    b"Authorization: Bearer \xc3\xa9\r\n",
    b"traceparent: 00-0-0-zz\r\n",
    b"x-request-id: a\tb\r\n",
    b"GET /v1/models/%ff%00 HTTP/1.1\r\n\r\n",
    b"HEAD /v1/models HTTP/1.0\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)


async def fuzz_http(url: str, seed: int, limit: Limit) -> Found:
    """Bytes on a connection, from a request in order to none at all."""
    found, rng = Found(), random.Random(seed)
    host, _, port = url.removeprefix("http://").rpartition(":")

    async def call(_: int) -> None:
        sent = bytearray(HEAD)
        for _ in range(rng.choice((1, 1, 2, 3, 6))):
            at = rng.choice((0, 4, *LINES, rng.randrange(len(sent) + 1)))
            match rng.randrange(4):
                case 0:
                    sent[at:at] = rng.choice(PIECES)
                case 1:
                    sent[at : at + 1] = bytes((rng.getrandbits(8),))
                case 2:
                    del sent[at : at + rng.randint(1, 20)]
                case _:
                    sent[at:at] = sent[at : at + rng.randint(1, 60)] * rng.choice((1, 2, 50))
        try:
            answer = await asyncio.wait_for(_exchanged(host, int(port), bytes(sent)), DEADLINE)
        except TimeoutError:
            found.add("no end", "the connection stays open", bytes(sent))
            return
        status = answer[9:12].decode("latin-1")
        is_bad = answer and (answer[:7] != b"HTTP/1." or not status.isdigit() or status >= "500")
        found.add(f"raw {status or 'closed'}", f"{answer[:300]!r}" if is_bad else None, bytes(sent))

    await limit.each(call)
    return found


async def _exchanged(host: str, port: int, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(sent)
            writer.write_eof()
            return await reader.read()
        return b""
    finally:
        writer.close()


@dataclass(frozen=True, slots=True)
class Method:
    """`good` is a message that is answered."""

    path: str
    good: Message


def chat_methods() -> list[Method]:
    image = chat_pb2.ContentPart(image=chat_pb2.Image(data=originals()["png RGB"]))
    question = chat_pb2.ContentPart(text="What is this?")
    messages = [chat_pb2.Message(role=chat_pb2.ROLE_USER, content=[image, question])]
    sampling = chat_pb2.SamplingParams(max_tokens=3, temperature=0)
    tools = [chat_pb2.Tool(name="look", parameters='{"type": "object"}')]
    path = "/pixtral.v1.ChatService"
    return [
        Method(
            f"{path}/Complete",
            chat_pb2.CompleteRequest(
                chat=chat_pb2.Chat(messages=messages, sampling=sampling, tools=tools)
            ),
        ),
        Method(
            f"{path}/StreamComplete",
            chat_pb2.StreamCompleteRequest(
                chat=chat_pb2.Chat(messages=messages, sampling=sampling)
            ),
        ),
        Method(
            f"{path}/CountTokens",
            chat_pb2.CountTokensRequest(chat=chat_pb2.Chat(messages=messages, tools=tools)),
        ),
        Method(f"{path}/ListModels", chat_pb2.ListModelsRequest()),
        Method(f"{path}/PutImage", chat_pb2.PutImageRequest(data=originals()["jpeg"])),
    ]


def encoder_methods(fingerprint: str) -> list[Method]:
    image = originals()["webp"]
    key = encoder_pb2.EmbeddingKey(
        image_sha256=hashlib.sha256(image).digest(), fingerprint=fingerprint, scope="fuzz"
    )
    path = "/pixtral.internal.v1.EncoderService"
    return [
        Method(f"{path}/Encode", encoder_pb2.EncodeRequest(key=key, image=image)),
        Method(f"{path}/Fetch", encoder_pb2.FetchRequest(key=key)),
        Method(f"{path}/GetEncoderInfo", encoder_pb2.GetEncoderInfoRequest()),
    ]


def decoder_methods() -> list[Method]:
    sampling = chat_pb2.SamplingParams(max_tokens=3, temperature=0)
    prompt = decoder_pb2.GenerateRequest(
        request_id="fuzz", prompt_token_ids=[1, 3, 1040, 4], sampling=sampling
    )
    path = "/pixtral.internal.v1.DecoderService"
    return [
        Method(f"{path}/Generate", prompt),
        Method(f"{path}/GetDecoderInfo", decoder_pb2.GetDecoderInfoRequest()),
    ]


async def fuzz_grpc(
    channel: grpc.aio.Channel, methods: Sequence[Method], seed: int, limit: Limit
) -> Found:
    """Messages, their bytes, and none or several where one is due. Good ones go on being taken."""
    found, rng = Found(), random.Random(seed)
    pictures = Mutator(seed, list(originals().values()))
    blobs = [b"", b"x", *(pictures.next() for _ in range(300))]
    messages = Messages(seed, blobs)

    async def call(number: int) -> None:
        method = rng.choice(methods)
        payload = messages.payload(method.good)
        payload = _encoded_image(rng, method, blobs, payload)
        code = await _ended(channel, method.path, [payload] * rng.choice((1,) * 20 + (0, 2)))
        name = method.path.rpartition("/")[2]
        problem = None if code in CLEAN else f"{method.path}: {code.name}"
        found.add(f"{name} {code.name}", problem, payload)
        if number % 200 == 199:
            await still_good(channel, methods)

    await limit.each(call)
    await still_good(channel, methods)
    return found


def _encoded_image(
    rng: random.Random, method: Method, blobs: Sequence[bytes], payload: bytes
) -> bytes:
    """Half of what an encoder gets are images under their right name: it looks into no other."""
    if not isinstance(method.good, encoder_pb2.EncodeRequest) or rng.random() < 0.5:
        return payload
    request = encoder_pb2.EncodeRequest()
    request.CopyFrom(method.good)
    request.image = rng.choice(blobs)
    request.key.image_sha256 = hashlib.sha256(request.image).digest()
    return request.SerializeToString()


async def still_good(channel: grpc.aio.Channel, methods: Sequence[Method]) -> None:
    for method in methods:
        code = await _ended(channel, method.path, [method.good.SerializeToString()])
        assert code is grpc.StatusCode.OK, f"{method.path}: {code} for a good message"


async def _ended(
    channel: grpc.aio.Channel, path: str, payloads: Sequence[bytes]
) -> grpc.StatusCode:
    async def requests() -> AsyncIterator[bytes]:
        for payload in payloads:
            yield payload

    # Every method takes and gives bytes here.
    method: Any = channel.stream_stream(path)
    call = method(requests(), timeout=DEADLINE)
    left = MAX_RESPONSES
    try:
        async for _ in call:
            left -= 1
            if left <= 0:
                call.cancel()
    except grpc.aio.AioRpcError as error:
        if len(payloads) > 1 and error.details() == UNSENT:
            return grpc.StatusCode.CANCELLED
        return error.code()
    except asyncio.CancelledError:
        if not call.cancelled():
            raise
    code: grpc.StatusCode = await call.code()
    return code
