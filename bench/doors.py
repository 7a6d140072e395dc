"""The two APIs of a gateway as a load generator uses them: gRPC, and OpenAI's HTTP API.

They use raw stubs and parse events by hand, because the generator shares the machine. HTTP
requests use only what vLLM's own server supports too.
"""

import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import grpc

from bench.loops import Outcome
from pixtral.v1 import chat_pb2, chat_pb2_grpc
from pixtral_client.requests import authorization, channel_options

TIMEOUT_SECONDS = 300.0
_CODES = {429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
_ROLES = {"user": chat_pb2.ROLE_USER, "assistant": chat_pb2.ROLE_ASSISTANT}


class Prompt(Protocol):
    """A request, independent of the API."""

    @property
    def texts(self) -> Iterator[tuple[str, str]]:
        """Role and text of each message."""

    @property
    def pictures(self) -> Sequence[bytes]:
        """Image files. They go into the first message, before its text."""

    @property
    def output_tokens(self) -> int: ...

    @property
    def given_up(self) -> int | None:
        """The number of tokens after which the client cancels; None if it never does."""


@dataclass(slots=True)
class Answer:
    """The timings of one answer, on the clock of `time.perf_counter`.

    Attributes:
        came: when each message with tokens arrived.
        tokens: tokens of the answer.
        prompt_tokens: tokens of the prompt.
        cached_tokens: prompt tokens that came from the KV prefix cache.
        images_cached: whether all images came from a cache; None if the answer does not say.
    """

    came: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    images_cached: bool | None = None

    def outcome(self, code: str) -> Outcome:
        return Outcome(code, time.perf_counter(), self.came[0] if self.came else None)


# Sends a request, fills the answer as it arrives, and returns how it ended.
Door = Callable[[Prompt, Answer], Any]


@asynccontextmanager
async def open_door(url: str, api_key: str | None, model: str) -> AsyncIterator[Door]:
    """Opens `http://`, `https://` or `grpc://`. Raises ValueError for any other scheme."""
    scheme, _, rest = url.partition("://")
    if scheme in ("http", "https"):
        async with _http(url.rstrip("/"), api_key, model) as door:
            yield door
    elif scheme == "grpc":
        async with _grpc(rest.rstrip("/"), api_key, model) as door:
            yield door
    else:
        raise ValueError(f"{url} begins with none of http://, https:// and grpc://")


@asynccontextmanager
async def _grpc(target: str, api_key: str | None, model: str) -> AsyncIterator[Door]:
    metadata = authorization(api_key, target, None)
    async with grpc.aio.insecure_channel(target, channel_options(target)) as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)

        async def ask(asked: Prompt, answer: Answer) -> Outcome:
            request = _request(asked, model)
            call = stub.StreamComplete(request, metadata=metadata, timeout=TIMEOUT_SECONDS)
            try:
                async for response in call:
                    if response.HasField("delta"):
                        answer.came.append(time.perf_counter())
                        answer.tokens += len(response.delta.token_ids)
                        if asked.given_up is not None and answer.tokens >= asked.given_up:
                            call.cancel()
                            return answer.outcome("GIVEN_UP")
                    else:
                        _take(answer, response.completion)
            except grpc.aio.AioRpcError as error:
                return answer.outcome(error.code().name)
            return answer.outcome("OK")

        await channel.channel_ready()
        yield ask


def _request(asked: Prompt, model: str) -> chat_pb2.StreamCompleteRequest:
    images = [chat_pb2.ContentPart(image=chat_pb2.Image(data=each)) for each in asked.pictures]
    messages = [
        chat_pb2.Message(
            role=_ROLES[role],
            content=[*([] if number else images), chat_pb2.ContentPart(text=text)],
        )
        for number, (role, text) in enumerate(asked.texts)
    ]
    sampling = chat_pb2.SamplingParams(
        max_tokens=asked.output_tokens, temperature=0, ignore_eos=True
    )
    return chat_pb2.StreamCompleteRequest(
        chat=chat_pb2.Chat(model=model, messages=messages, sampling=sampling)
    )


def _take(answer: Answer, completion: chat_pb2.Completion) -> None:
    answer.prompt_tokens = completion.usage.prompt_tokens
    answer.cached_tokens = completion.usage.cached_tokens
    if completion.images:
        answer.images_cached = all(image.cached for image in completion.images)


@asynccontextmanager
async def _http(url: str, api_key: str | None, model: str) -> AsyncIterator[Door]:
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    # A server closes a connection that is idle for some seconds, so this client drops it earlier.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=1)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as http:

        async def ask(asked: Prompt, answer: Answer) -> Outcome:
            try:
                async with http.post(
                    f"{url}/v1/chat/completions", json=_body(asked, model)
                ) as response:
                    if response.status != 200:
                        code = _CODES.get(response.status, f"HTTP {response.status}")
                        return answer.outcome(code)
                    async for line in response.content:
                        if ending := _read(line, answer):
                            return answer.outcome(ending)
                        if asked.given_up is not None and len(answer.came) >= asked.given_up:
                            response.close()
                            return answer.outcome("GIVEN_UP")
            except TimeoutError:
                return answer.outcome("DEADLINE_EXCEEDED")
            except aiohttp.ClientError:
                return answer.outcome("UNAVAILABLE")
            # The stream ended without its last event.
            return answer.outcome("INCOMPLETE")

        yield ask


def _read(line: bytes, answer: Answer) -> str | None:
    """Parses one line of events; returns how the answer ended, once it has."""
    if line.startswith(b"data: [DONE]"):
        return "OK"
    if not line.startswith(b"data: {"):
        return None
    event = json.loads(line[6:])
    if "error" in event:
        return "FAILED"
    for choice in event.get("choices", ()):
        # A token's text may be empty, so the finish reason also counts as the first token.
        has_ended = choice.get("finish_reason") and not answer.came
        if choice["delta"].get("content") or has_ended:
            answer.came.append(time.perf_counter())
    if usage := event.get("usage"):
        answer.tokens = usage["completion_tokens"]
        answer.prompt_tokens = usage["prompt_tokens"]
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    with suppress(KeyError):
        if images := event["pixtral"]["images"]:
            answer.images_cached = all(image["cached"] for image in images)
    return None


def _body(asked: Prompt, model: str) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": text}]} for role, text in asked.texts
    ]
    urls = (
        f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}" for picture in asked.pictures
    )
    messages[0]["content"][:0] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {
        **({"model": model} if model else {}),
        "messages": messages,
        "max_tokens": asked.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
