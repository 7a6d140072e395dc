"""Asks the service, by both of its doors, and records all that comes back."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx2
import openai

from pixtral_client import AsyncClient, PixtralError, UploadedImage
from pixtral_client.requests import Options
from tests.faults.history import CHOICES, FINISHED, HUNG, LEFT, TRUNCATED, Ask, History, Record
from tests.faults.questions import Question, conversation, url_of
from tests.faults.stack import Stack, key_of

MODEL = "pixtral-mini"
# Longer than the slowest fault that a request outlives: an engine that hangs.
TIMEOUT_SECONDS = 90.0
# Beyond its deadline, until a request counts as one that never ends.
PATIENCE_SECONDS = 10.0

STRUCTURE_TOKENS = 48
# One value is all that its schema allows.
TOOL: dict[str, Any] = {
    "name": "paint",
    "parameters": {
        "type": "object",
        "properties": {"Farbe": {"const": "grün"}},
        "required": ["Farbe"],
        "additionalProperties": False,
    },
}
ARGUMENTS = {"Farbe": "grün"}

_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# The end of a stream that has begun: the error's own word.
_ENDINGS = {
    "deadline_exceeded": "DEADLINE_EXCEEDED",
    "rate_limit_exceeded": "RESOURCE_EXHAUSTED",
    "internal": "INTERNAL",
}


class Clients:
    """One for each tenant and gateway and door, connected through the stack's proxies."""

    def __init__(self, stack: Stack, history: History) -> None:
        self._stack = stack
        self._history = history
        self._grpc: dict[tuple[str, int], AsyncClient] = {}
        self._http: dict[tuple[str, int], openai.AsyncOpenAI] = {}
        self.under_way = 0

    async def __aenter__(self) -> Self:
        for tenant in self._stack.tenants:
            for number in range(len(self._stack.of("gateway"))):
                self._grpc[tenant, number] = self.client(tenant, number)
                self._http[tenant, number] = openai.AsyncOpenAI(
                    base_url=f"https://{self._stack.address(f'gateway-{number}-http')}/v1",
                    api_key=key_of(tenant),
                    max_retries=0,
                    # Its own 5 s to be connected in are less than a gateway may be stopped for.
                    timeout=TIMEOUT_SECONDS,
                    http_client=openai.DefaultAsyncHttpxClient(verify=self._stack.ssl),
                )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for client in self._grpc.values():
            await client.close()
        for http in self._http.values():
            await http.close()

    def client(self, tenant: str, gateway: int) -> AsyncClient:
        """A connection of its own."""
        address = self._stack.address(f"gateway-{gateway}")
        return AsyncClient(address, tls=self._stack.tls, api_key=key_of(tenant), max_retries=0)

    async def ask(self, ask: Ask, client: AsyncClient | None = None) -> Record:
        """Returns once it has ended, however. It is in the history from its begin."""
        record = Record.of(ask, time.monotonic())
        self._history.records.append(record)
        self.under_way += 1
        try:
            async with asyncio.timeout(ask.timeout + PATIENCE_SECONDS):
                if ask.protocol == "grpc":
                    client = client or self._grpc[ask.tenant, ask.gateway]
                    record.outcome = await _by_grpc(client, ask, record)
                else:
                    record.outcome = await _by_http(
                        self._http[ask.tenant, ask.gateway], ask, record
                    )
        except TimeoutError:
            record.outcome = HUNG
        finally:
            self.under_way -= 1
            record.ended = time.monotonic()
        return record


def options(ask: Ask) -> Options:
    made: Options = {
        "max_tokens": ask.question.max_tokens,
        "temperature": 0,
        "ignore_eos": ask.question.is_long,
    }
    # An answer with a structure needs room for it.
    structured: Options = {"max_tokens": STRUCTURE_TOKENS, "temperature": 0}
    match ask.form:
        case "choices":
            return {**made, "n": CHOICES}
        case "logprobs":
            return {**made, "logprobs": 1}
        case "structure":
            return {**structured, "structured_output": {"choice": [structure_of(ask.question)]}}
        case "tool":
            return {**structured, "tools": [TOOL], "tool_choice": {"name": TOOL["name"]}}
        case _:
            return made


def structure_of(question: Question) -> str:
    """The only text that an answer may be."""
    return f"{question.name}: Größe \u00b1 1"


async def _content(ask: Ask, client: AsyncClient | None = None) -> list[Any]:
    pictures: list[Any] = list(ask.pictures)
    if ask.is_foreign:
        digests = (hashlib.sha256(picture).hexdigest() for picture in pictures)
        pictures = [UploadedImage(digest, 1, 1, 1) for digest in digests]
    elif ask.form == "upload" and client is not None:
        pictures = [await client.put_image(picture, timeout=ask.timeout) for picture in pictures]
    messages: list[Any] = []
    for asked, answered in ask.question.turns:
        messages.append({"role": "user", "content": [*pictures, asked]})
        messages.append({"role": "assistant", "content": answered})
        pictures = []
    return [*messages, {"role": "user", "content": [*pictures, ask.question.text]}]


async def _by_grpc(client: AsyncClient, ask: Ask, record: Record) -> str:
    outcome = await _once_by_grpc(client, ask, record)
    if ask.form == "upload" and record.reason == "IMAGE_NOT_FOUND" and not record.deltas:
        # Redis may have been away for that moment. The documents say to upload the image again.
        record.reason = record.detail = ""
        outcome = await _once_by_grpc(client, ask, record)
    return outcome


async def _once_by_grpc(client: AsyncClient, ask: Ask, record: Record) -> str:
    try:
        messages = await _content(ask, client)
        if not ask.is_stream:
            whole = await client.chat(messages, timeout=ask.timeout, **options(ask))
        else:
            async with await client.stream(messages, timeout=ask.timeout, **options(ask)) as stream:
                async for delta in stream:
                    if delta.index == 0:
                        _came(record, delta.text)
                        record.tokens += delta.token_ids
                    if ask.cancel_after is not None and record.deltas >= ask.cancel_after:
                        return LEFT
            if stream.completion is None:
                return TRUNCATED
            whole = stream.completion
    except PixtralError as error:
        record.reason, record.detail = error.reason, error.message
        return error.code.name
    if not ask.is_stream:
        record.tokens, record.text = list(whole.token_ids), whole.text
    record.finish_reason = whole.finish_reason
    record.cached = tuple(image.cached for image in whole.images)
    record.counted_tokens = whole.usage.completion_tokens
    record.cached_tokens = whole.usage.cached_tokens
    record.others = [choice.text for choice in whole.choices[1:]]
    record.logprobs = [each.chosen.logprob for each in whole.choices[0].logprobs]
    if whole.choices[0].tool_calls:
        (call,) = whole.choices[0].tool_calls
        record.call = call.name, call.arguments
    return FINISHED


async def _by_http(client: openai.AsyncOpenAI, ask: Ask, record: Record) -> str:
    request: Any = {
        "model": MODEL,
        "messages": conversation(
            [url_of(picture) for picture in ask.pictures], ask.question.text, ask.question.turns
        ),
        "max_tokens": ask.question.max_tokens,
        "temperature": 0,
        "extra_body": {"ignore_eos": ask.question.is_long},
    }
    try:
        # HTTP has no deadline that the gateway knows: the client ends it.
        async with asyncio.timeout(ask.timeout):
            if ask.is_stream:
                return await _http_stream(client, request, ask, record)
            answer = await client.chat.completions.create(**request)
    except TimeoutError:
        return "DEADLINE_EXCEEDED"
    except openai.APIStatusError as error:
        record.reason, record.detail = str(error.code), error.message
        return _CODES.get(error.status_code, f"HTTP_{error.status_code}")
    except (openai.APIConnectionError, httpx2.HTTPError) as error:
        record.detail = type(error).__name__
        return "UNAVAILABLE"
    except openai.APIError as error:
        record.reason, record.detail = str(error.code), error.message
        return _ENDINGS.get(record.reason, "UNAVAILABLE")
    record.text = answer.choices[0].message.content or ""
    record.finish_reason = answer.choices[0].finish_reason
    _told(record, answer)
    return FINISHED


async def _http_stream(client: openai.AsyncOpenAI, request: Any, ask: Ask, record: Record) -> str:
    create: Callable[..., Any] = client.chat.completions.create
    stream = await create(**request, stream=True, stream_options={"include_usage": True})
    async with stream:
        async for chunk in stream:
            if not chunk.choices:
                _told(record, chunk)
                continue
            text = chunk.choices[0].delta.content
            record.finish_reason = chunk.choices[0].finish_reason or record.finish_reason
            if text:
                _came(record, text)
            if ask.cancel_after is not None and record.deltas >= ask.cancel_after:
                return LEFT
    return TRUNCATED if record.counted_tokens is None else FINISHED


def _came(record: Record, text: str) -> None:
    record.deltas += 1
    record.text += text
    if record.first is None:
        record.first = time.monotonic()


def _told(record: Record, answer: Any) -> None:
    record.counted_tokens = answer.usage.completion_tokens
    record.cached = tuple(image["cached"] for image in answer.model_extra["pixtral"]["images"])
    details = answer.usage.prompt_tokens_details
    record.cached_tokens = None if details is None else details.cached_tokens
