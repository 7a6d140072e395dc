"""Parts of a request that nobody needs are dropped before its answer begins."""

import asyncio
import ctypes
import json
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from pixtral.v1 import chat_pb2
from tests.support.fake_tiers import FakeDecoder, never_ends
from tests.support.gateway_harness import Client, eventually
from tests.support.gateway_pictures import text, user
from tests.support.http2 import Http2Sender

BALLAST = 6 << 20
AT_ONCE = 9
# The beginning of a field with an unknown number, and a length of BALLAST bytes.
UNKNOWN = b"\xc2\x3e" + b"\x80\x80\x80\x03"


def resident() -> int:
    # Freed memory is not the process's any more.
    ctypes.CDLL(None).malloc_trim(0)
    memory: int = psutil.Process().memory_info().rss
    return memory


@pytest.fixture(autouse=True)
def waiting(decoders: list[FakeDecoder]) -> None:
    for decoder in decoders:
        decoder.behaviours = [never_ends]


@pytest.mark.parametrize("method", ["StreamComplete", "Complete"])
async def test_fields_that_are_not_known_are_dropped_from_messages(
    client: Client, decoders: list[FakeDecoder], method: str
) -> None:
    chat = chat_pb2.Chat(messages=[user(text("a"))])
    # Parts that are kept as they came would keep the message.
    chat.sampling.stop.append("x")
    chat.sampling.logit_bias[3] = 1.0
    begin = chat_pb2.CompleteRequest(chat=chat).SerializeToString() + UNKNOWN
    before, senders = 0, []
    for number in range(AT_ONCE):
        senders.append(Http2Sender(client.target, f"/pixtral.v1.ChatService/{method}"))
        await asyncio.to_thread(senders[-1].send, len(begin) + BALLAST, begin=begin)
        await asyncio.to_thread(senders[-1].end)
        await eventually(lambda: sum(len(d.calls) for d in decoders) > number)  # noqa: B023
        # What the first one takes is buffers, too.
        before = before or resident()
    assert resident() - before < (AT_ONCE - 1) * BALLAST / 2
    for sender in senders:
        sender.close()


@pytest.mark.parametrize("is_stream", [False, True])
async def test_fields_that_are_not_known_are_dropped_from_bodies(
    client: Client, decoders: list[FakeDecoder], is_stream: bool
) -> None:
    junk = "x" * (BALLAST // 2)
    part = {"type": "text", "text": "a", "junk": junk}
    messages = [{"role": "user", "content": [part]}]
    body: dict[str, Any] = {"messages": messages, "junk": junk, "stream": is_stream}
    content = json.dumps(body).encode()
    del body, messages, part, junk
    url = urlsplit(client.url)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {url.hostname}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    before, writers = 0, []
    for number in range(AT_ONCE):
        _, writer = await asyncio.open_connection(url.hostname, url.port)
        writers.append(writer)
        writer.write(head.encode())
        writer.write(content)
        await eventually(lambda: sum(len(d.calls) for d in decoders) > number)  # noqa: B023
        before = before or resident()
    assert resident() - before < (AT_ONCE - 1) * BALLAST / 2
    for writer in writers:
        writer.close()
