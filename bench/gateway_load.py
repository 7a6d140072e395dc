"""The load of `bench.gateway`: requests one at a time, many streams at once, streams that wait."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from prometheus_client.parser import text_string_to_metric_families

from pixtral.internal.v1 import decoder_pb2, decoder_pb2_grpc
from pixtral.v1 import chat_pb2, chat_pb2_grpc

# Several, so that streams do not share one connection's flow control.
CONNECTIONS = 8
# How many streams open concurrently.
OPENING = 64
# Without a pool of its own, every channel would share one connection.
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 64 << 20))


@dataclass(frozen=True, slots=True)
class Spent:
    """The resources of a process: CPU seconds so far, and bytes of memory now."""

    cpu_seconds: float
    memory_bytes: float

    @classmethod
    async def of(cls, metrics: str) -> "Spent":
        """Reads them from the process's metrics page at host:port."""
        page = await asyncio.to_thread(_read, f"http://{metrics}/metrics")
        samples = {
            sample.name: sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name.startswith("process_")
        }
        return cls(samples["process_cpu_seconds_total"], samples["process_resident_memory_bytes"])


@dataclass(frozen=True, slots=True)
class Relayed:
    tokens: int
    messages: int
    seconds: float


# Opens a stream of `tokens` tokens, one each `step_ms`, and yields the tokens of each message.
Open = Callable[[int, int], Any]


def paced(tokens: int, step_ms: int) -> chat_pb2.SamplingParams:
    """Sampling parameters that the stand-in reads as a pace."""
    return chat_pb2.SamplingParams(max_tokens=tokens, seed=step_ms)


def asking(text: str, *images: bytes) -> chat_pb2.Message:
    parts = [chat_pb2.ContentPart(image=chat_pb2.Image(data=data)) for data in images]
    parts.append(chat_pb2.ContentPart(text=text))
    return chat_pb2.Message(role=chat_pb2.ROLE_USER, content=parts)


class Clients:
    """Connections to a gateway's two APIs, a decoder and a bare relay."""

    def __init__(self, channels: Mapping[str, Sequence[grpc.aio.Channel]], http: str) -> None:
        self._http = http
        self._turn = 0
        self._chat = [chat_pb2_grpc.ChatServiceStub(c) for c in channels["gateway"]]
        self._decoder = [decoder_pb2_grpc.DecoderServiceStub(c) for c in channels["stand-in"]]
        self._relay = [decoder_pb2_grpc.DecoderServiceStub(c) for c in channels["bare-relay"]]

    @classmethod
    @asynccontextmanager
    async def of(cls, addresses: dict[str, str], http: str) -> Any:
        async with AsyncExitStack() as open_channels:
            channels = {
                name: [
                    await open_channels.enter_async_context(
                        grpc.aio.insecure_channel(address, options=_OPTIONS)
                    )
                    for _ in range(CONNECTIONS)
                ]
                for name, address in addresses.items()
            }
            yield cls(channels, http)

    def _next(self, stubs: Sequence[Any]) -> Any:
        self._turn += 1
        return stubs[self._turn % len(stubs)]

    async def direct_first(self, prompt_token_ids: Sequence[int]) -> float:
        return await _first(self._decoder[0].Generate(_one_token(prompt_token_ids)))

    async def relay_first(self, prompt_token_ids: Sequence[int]) -> float:
        return await _first(self._relay[0].Generate(_one_token(prompt_token_ids)))

    async def grpc_first(self, message: chat_pb2.Message) -> float:
        request = chat_pb2.StreamCompleteRequest(
            chat=chat_pb2.Chat(messages=[message], sampling=paced(1, 1))
        )
        return await _first(self._chat[0].StreamComplete(request))

    async def grpc_tokens(self, tokens: int, step_ms: int) -> Any:
        request = chat_pb2.StreamCompleteRequest(
            chat=chat_pb2.Chat(messages=[asking("Hello?")], sampling=paced(tokens, step_ms))
        )
        async for response in self._next(self._chat).StreamComplete(request):
            yield len(response.delta.token_ids)

    async def relay_tokens(self, tokens: int, step_ms: int) -> Any:
        request = decoder_pb2.GenerateRequest(sampling=paced(tokens, step_ms))
        async for response in self._next(self._relay).Generate(request):
            yield len(response.delta.token_ids)

    async def http_tokens(self, tokens: int, step_ms: int) -> Any:
        # The HTTP API does not count tokens in each event; a token of the stand-in is one word.
        body = {
            "messages": [{"role": "user", "content": "Hello?"}],
            "max_tokens": tokens,
            "seed": step_ms,
            "stream": True,
        }
        async for text in sse(self._http, body):
            yield text.count("word")


def _one_token(prompt_token_ids: Sequence[int]) -> decoder_pb2.GenerateRequest:
    return decoder_pb2.GenerateRequest(prompt_token_ids=prompt_token_ids, sampling=paced(1, 1))


async def sse(address: str, body: dict[str, Any]) -> Any:
    """Yields the text of each event of a chat completion, over a connection of its own.

    A client library would use more CPU than the measured server.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        content = json.dumps(body).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content)
        )
        writer.write(content)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"refused: {status!r}")
        while (line := await reader.readline()) and line != b"data: [DONE]\n":
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:])["choices"]
                yield "".join(choice["delta"].get("content") or "" for choice in choices)
    finally:
        writer.close()


async def alternately(count: int, *asks: Callable[[], Awaitable[float]]) -> list[list[float]]:
    """The sorted times of each call; the calls take turns, so that all see the same machine."""
    for ask in asks:
        for _ in range(20):
            await ask()
    times: list[list[float]] = [[] for _ in asks]
    for _ in range(count):
        for ask, seen in zip(asks, times, strict=True):
            seen.append(await ask())
    return [sorted(each) for each in times]


async def many(open_stream: Open, streams: int, tokens: int, step_ms: int) -> Relayed:
    """Runs `streams` streams at once, to their ends."""
    messages = read = 0

    async def one() -> None:
        nonlocal messages, read
        async for count in open_stream(tokens, step_ms):
            messages += bool(count)
            read += count

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(one())
    return Relayed(read, messages, time.perf_counter() - began)


@asynccontextmanager
async def held(open_stream: Open, streams: int) -> Any:
    """Holds `streams` streams open: each sends one token, and the next after an hour."""
    opening = asyncio.Semaphore(OPENING)
    begun = 0
    all_begun = asyncio.Event()

    async def one() -> None:
        nonlocal begun
        await opening.acquire()
        async for _ in open_stream(1000, 3_600_000):
            begun += 1
            opening.release()
            if begun == streams:
                all_begun.set()

    tasks = [asyncio.create_task(one()) for _ in range(streams)]
    failed = asyncio.ensure_future(asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION))
    waiting = asyncio.ensure_future(all_begun.wait())
    try:
        await asyncio.wait((waiting, failed), return_when=asyncio.FIRST_COMPLETED)
        if not all_begun.is_set():
            raise RuntimeError(f"only {begun} of {streams} streams were held")
        yield
    finally:
        waiting.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first(call: Any) -> float:
    began = time.perf_counter()
    first = 0.0
    async for _ in call:
        first = first or time.perf_counter() - began
    return first


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        text: str = response.read().decode()
    return text
