"""Sends a decoder what it must not die of, over gRPC, and looks for what it must not do.

    python -m tests.decoder.fuzz [--requests 10000] [--seed 0]

Starts a decoder and a Redis. Every call must end with a status that names the caller's mistake, or
with an answer; the decoder must serve on, and a good prompt, asked in between, must be answered as
it was at first.
"""

import argparse
import asyncio
import collections
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from models.random_checkpoint import write_random_checkpoint
from pixtral.internal.v1 import decoder_pb2
from pixtral_core.cache.wire_format import DType
from pixtral_core.model.fingerprint import fingerprint
from pixtral_core.model.vision_spec import VisionSpec, read_params
from pixtral_core.server.channel import open_channel
from tests.decoder.fuzz_requests import Fuzzed, Fuzzer
from tests.support.redis_server import RedisServer

METHOD = "/pixtral.internal.v1.DecoderService/Generate"
AT_ONCE = 8
DEADLINE = 60.0
START_SECONDS = 180.0
# An answer is read so far and then let go.
MAX_RESPONSES = 12
EVERY = 200
CLEAN = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


@dataclass(slots=True)
class Found:
    """How calls ended, and the payloads of those that ended badly."""

    statuses: Counter[str] = field(default_factory=collections.Counter)
    bad: list[tuple[str, bytes]] = field(default_factory=list)


async def fuzz(
    channel: grpc.aio.Channel, redis: RedisServer, fuzzer: Fuzzer, requests: int
) -> Found:
    """Sends `requests` calls, a few at once. Raises AssertionError if a good answer changes."""
    call: Any = channel.unary_stream(METHOD)
    found, numbers, cancels = Found(), iter(range(requests)), random.Random(requests)
    good = [_known_good(fuzzer, redis) for _ in range(3)]
    expected = [await _answer(call, payload) for payload in good]

    async def worker() -> None:
        for number in numbers:
            fuzzed = fuzzer.next()
            await asyncio.to_thread(store, redis, fuzzed)
            responses = 1 if cancels.random() < 0.1 else MAX_RESPONSES
            status = await ended(call, fuzzed.payload, responses)
            found.statuses[status.name] += 1
            if status not in CLEAN:
                found.bad.append((status.name, fuzzed.payload))
            if number % EVERY == EVERY - 1:
                which = number // EVERY % len(good)
                assert await _answer(call, good[which]) == expected[which], "a good answer changed"

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())
    assert [await _answer(call, payload) for payload in good] == expected
    return found


def _known_good(fuzzer: Fuzzer, redis: RedisServer) -> bytes:
    request, values = fuzzer.good()
    store(redis, Fuzzed(b"", values))
    request.request_id = "good"
    request.sampling.max_tokens, request.sampling.temperature = 6, 0.0
    request.sampling.ignore_eos = True
    return request.SerializeToString()


def store(redis: RedisServer, fuzzed: Fuzzed) -> None:
    with redis.client() as client:
        for key, value in fuzzed.values:
            if value is None:
                client.delete(key)
            else:
                client.set(key, value)


async def ended(call: Any, payload: bytes, responses: int) -> grpc.StatusCode:
    stream = call(payload, timeout=DEADLINE)
    try:
        async for _ in stream:
            responses -= 1
            if responses <= 0:
                stream.cancel()
    except grpc.aio.AioRpcError as error:
        return error.code()
    except asyncio.CancelledError:
        # The error of a call that was cancelled here. A cancelled task cancels its call, too.
        if _is_cancelled() or not stream.cancelled():
            raise
    code: grpc.StatusCode = await stream.code()
    return code


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _answer(call: Any, payload: bytes) -> list[int]:
    tokens: list[int] = []
    async for response in call(payload, timeout=DEADLINE):
        tokens += decoder_pb2.GenerateResponse.FromString(response).delta.token_ids
    return tokens


def fuzzer_of(model_dir: Path, dtype: DType, context_length: int, seed: int) -> Fuzzer:
    params = read_params(model_dir)
    return Fuzzer(
        seed,
        spec=VisionSpec.from_params(params),
        dtype=dtype,
        fingerprint=fingerprint(model_dir, dtype),
        vocab_size=int(params["vocab_size"]),
        context_length=context_length,
    )


@asynccontextmanager
async def decoder(
    model_dir: Path, redis: RedisServer, *arguments: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, grpc.aio.Channel]]:
    """A decoder in a process of its own, serving; killed at the end where it lives."""
    with tempfile.TemporaryDirectory() as directory:
        addresses = Path(directory) / "addresses.json"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pixtral_decoder", "--model-dir", str(model_dir)),
            *("--redis-url", redis.url, "--listen", "127.0.0.1:0"),
            *("--address-file", str(addresses), *arguments),
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                while not addresses.exists():
                    assert process.returncode is None
                    await asyncio.sleep(0.05)
            async with open_channel(json.loads(addresses.read_text())["grpc"], None) as channel:
                async with asyncio.timeout(START_SECONDS):
                    await _serving(channel)
                yield process, channel
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _serving(channel: grpc.aio.Channel) -> None:
    info: Any = channel.unary_unary("/pixtral.internal.v1.DecoderService/GetDecoderInfo")
    while True:
        try:
            await info(b"", timeout=5)
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.1)
        else:
            return


async def run(requests: int, seed: int) -> int:
    context_length = 1024
    with tempfile.TemporaryDirectory() as directory, RedisServer() as redis:
        model_dir = write_random_checkpoint(Path(directory) / "model")
        fuzzer = fuzzer_of(model_dir, DType.BF16, context_length, seed)
        arguments = ("--context-length", str(context_length), "--max-images", "8")
        async with decoder(model_dir, redis, *arguments) as (process, channel):
            began = time.monotonic()
            found = await fuzz(channel, redis, fuzzer, requests)
            print(f"{requests} requests of seed {seed} in {time.monotonic() - began:.0f} s:")
            for status, count in found.statuses.most_common():
                print(f"  {count:6} {status}")
            assert process.returncode is None
    for status, payload in found.bad[:10]:
        print(status, payload[:2000].hex())
    return 1 if found.bad else 0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.decoder.fuzz", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.exit(asyncio.run(run(given.requests, given.seed)))


if __name__ == "__main__":
    main()
