"""The gateway's CPU time for a request that it refuses, over gRPC and over HTTP.

    make bench-refusals

One silent stream holds the gateway's only permit, so the gateway refuses all other requests. The
requests are a text and an image of about 1 MB; gRPC and HTTP take turns, beside the cheapest
refusal that grpc.aio allows. Prints a table and writes it to bench/results/.
"""

import argparse
import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import uvloop

from bench.bare_relay import REFUSED
from bench.gateway import PICTURE_SIDE, clients_of, stack
from bench.gateway_load import Spent, asking, held
from bench.module_path import ROOT
from bench.pictures import jpeg
from pixtral.v1 import chat_pb2, chat_pb2_grpc
from pixtral_cli.stack.process_stack import Stack

AT_ONCE = 8
ROUNDS = 5
# Sends one request; raises if it is not refused.
Send = Callable[[], Awaitable[None]]


async def refused(call: Any) -> None:
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return
        raise
    raise RuntimeError("not refused")


class HttpDoor:
    """Persistent connections without a client library, which would use more CPU."""

    def __init__(self, address: str, message: chat_pb2.Message) -> None:
        self._host, _, self._port = address.rpartition(":")
        parts: list[dict[str, Any]] = []
        for part in message.content:
            if part.HasField("image"):
                data = base64.b64encode(part.image.data).decode()
                url = {"url": f"data:image/jpeg;base64,{data}"}
                parts.append({"type": "image_url", "image_url": url})
            else:
                parts.append({"type": "text", "text": part.text})
        body = json.dumps({"messages": [{"role": "user", "content": parts}], "stream": True})
        self._request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (len(body), body.encode())
        )
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self) -> None:
        if self._free:
            reader, writer = self._free.pop()
        else:
            reader, writer = await asyncio.open_connection(self._host, int(self._port))
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 429 " not in head.partition(b"\r\n")[0]:
            raise RuntimeError(f"not refused: {head!r}")
        length = next(
            int(line.partition(b":")[2])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        )
        await reader.readexactly(length)
        await writer.drain()
        self._free.append((reader, writer))

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()


async def cost(metrics: str, send: Send, count: int) -> float:
    """CPU seconds for each request, of the process with these metrics."""
    numbers = iter(range(count))

    async def worker() -> None:
        for _ in numbers:
            await send()

    before = await Spent.of(metrics)
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())
    return ((await Spent.of(metrics)).cpu_seconds - before.cpu_seconds) / count


async def measure(running: Stack, count: int) -> dict[str, float]:
    gateway = running.addresses["gateway"]
    relay = running.addresses["bare-relay"]
    text = asking("What is this?")
    picture = asking("What is this?", jpeg(0, PICTURE_SIDE, PICTURE_SIDE))
    async with (
        clients_of(running) as clients,
        grpc.aio.insecure_channel(gateway.grpc) as channel,
        grpc.aio.insecure_channel(relay.grpc) as bare,
        held(clients.grpc_tokens, 1),
    ):
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        refuse: Any = bare.unary_stream(REFUSED)
        doors = [HttpDoor(gateway.http or "", message) for message in (text, picture)]

        def by_grpc(message: chat_pb2.Message) -> Send:
            request = chat_pb2.StreamCompleteRequest(chat=chat_pb2.Chat(messages=[message]))
            return lambda: refused(stub.StreamComplete(request))

        kinds: dict[str, tuple[str, Send, int]] = {
            "bare gRPC": (relay.metrics, lambda: refused(refuse(b"")), count),
            "gRPC, text": (gateway.metrics, by_grpc(text), count),
            "gRPC, image": (gateway.metrics, by_grpc(picture), count // 10),
            "HTTP, text": (gateway.metrics, doors[0].send, count),
            "HTTP, image": (gateway.metrics, doors[1].send, count // 10),
        }
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for metrics, send, _ in kinds.values():
            await cost(metrics, send, AT_ONCE * 4)
        for _ in range(ROUNDS):
            for kind, (metrics, send, requests) in kinds.items():
                found[kind].append(await cost(metrics, send, requests))
        for door in doors:
            door.close()
    # Other work of the machine only adds to the cost.
    return {kind: min(costs) for kind, costs in found.items()}


def table(found: dict[str, float]) -> str:
    lines = ["a refusal                 CPU of the process, µs"]
    lines += [f"  {kind:24}{seconds * 1e6:20.0f}" for kind, seconds in found.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument(
        "--requests", type=int, default=1500, help="requests of each kind, in each round"
    )
    args = parser.parse_args()
    results = ROOT / "bench" / "results"
    results.mkdir(parents=True, exist_ok=True)
    with stack(args.model_dir, 1, results / "refusals-logs") as running:
        found = uvloop.run(measure(running, args.requests))
    text = table(found)
    print(text)
    (results / "refusals.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    (results / "refusals.txt").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
