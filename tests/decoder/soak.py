"""Loads a decoder for minutes with all sorts of calls, many of them cut off, and watches it.

    python -m tests.decoder.soak [--minutes 20]

The decoder runs in this process and its engine in another; the load comes from a third. What they
hold is sampled: memory of both, keys and values of running requests, embeddings, asyncio tasks.
Nothing of it may grow over the second half, by the trend that `bench.soak` takes, and with the load
gone nothing of it may be in use.
"""

import argparse
import asyncio
import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import psutil
from prometheus_client import REGISTRY

from models.random_checkpoint import RandomSpec, write_random_checkpoint
from pixtral_core.cache.wire_format import DType
from pixtral_core.server.channel import open_channel
from pixtral_core.server.process import running
from pixtral_decoder.embeddings import memory_files
from pixtral_decoder.process import DecoderTier
from pixtral_decoder.settings import DecoderSettings
from tests.decoder.fuzz import CLEAN, METHOD, ended, fuzzer_of, store
from tests.decoder.fuzz_requests import Fuzzed, Fuzzer
from tests.support.redis_server import RedisServer
from tests.support.trend import trend

CONTEXT_LENGTH = 2048
WORKERS = 12
SAMPLE_SECONDS = 2.0
MIB = 1 << 20
# All caches are full within the first half, so that what grows after it is none of them.
CACHE_BYTES = 64 * MIB
# vLLM's, of grammars that were compiled, 512 MiB unless told; and oneDNN's on a CPU, of code for
# each of 1,024 shapes of a product.
ENGINE_CACHES = {"VLLM_XGRAMMAR_CACHE_MB": "32", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
# What the second half may add to the median: allocators and Prometheus still move by this.
MAX_GROWTH = 0.04


@dataclass(frozen=True, slots=True)
class Sample:
    """At one time; memory in MiB, keys and values as a share of what there is."""

    decoder_mib: float
    engine_mib: float
    kv_used: float
    embeddings_mib: float
    tasks: float
    admitted: float


def sample(tier: DecoderTier) -> Sample:
    own = psutil.Process()
    engine = sum(child.memory_info().rss for child in own.children() if _is_engine(child))
    decoder = tier._decoder
    assert decoder is not None
    return Sample(
        own.memory_info().rss / MIB,
        engine / MIB,
        REGISTRY.get_sample_value(
            "vllm:kv_cache_usage_perc", {"engine": "0", "model_name": str(tier._settings.model_dir)}
        )
        or 0.0,
        decoder._source._cache.nbytes / MIB,
        len(asyncio.all_tasks()),
        decoder.queue.admitted,
    )


def _is_engine(process: psutil.Process) -> bool:
    try:
        return "EngineCore" in " ".join(process.cmdline())
    except psutil.Error:
        return False


async def load(address: str, redis_port: int, model_dir: Path, seconds: float) -> Counter[str]:
    """Fuzzed calls and long good ones, a third of which are cut off; how they ended."""
    redis = RedisServer()
    redis.port = redis_port
    fuzzer = await asyncio.to_thread(fuzzer_of, model_dir, DType.BF16, CONTEXT_LENGTH, 1)
    statuses: Counter[str] = Counter()
    until = time.monotonic() + seconds
    async with open_channel(address, None) as channel:
        call: Any = channel.unary_stream(METHOD)

        async def worker(number: int) -> None:
            rng = random.Random(number)
            while time.monotonic() < until:
                fuzzed = fuzzer.next()
                payload, responses = fuzzed.payload, 12
                if rng.random() < 0.5:
                    payload, responses = _long(fuzzer, rng, redis)
                await asyncio.to_thread(store, redis, fuzzed)
                status = await ended(call, payload, responses)
                assert status in CLEAN, status
                statuses[status.name] += 1

        async with asyncio.TaskGroup() as group:
            for number in range(WORKERS):
                group.create_task(worker(number))
    return statuses


def _long(fuzzer: Fuzzer, rng: random.Random, redis: RedisServer) -> tuple[bytes, int]:
    request, values = fuzzer.good()
    store(redis, Fuzzed(b"", values))
    tokens = rng.randint(20, 120)
    request.request_id = f"long-{rng.getrandbits(64)}"
    request.sampling.max_tokens = tokens
    request.sampling.n = rng.choice((1, 1, 1, 3))
    request.sampling.ignore_eos = True
    return request.SerializeToString(), rng.choice((rng.randint(1, tokens), tokens * 4, tokens * 4))


def problems(samples: list[Sample], rest: Sample, before: Sample) -> list[str]:
    found = []
    later = samples[len(samples) // 2 :]
    times = [number * SAMPLE_SECONDS for number in range(len(later))]
    for at, field in enumerate(fields(Sample)):
        seen = trend(field.name, times, [astuple(each)[at] for each in later])
        print(
            f"  {field.name:16} {seen.median:9.2f} median, {seen.growth:+8.2f} over the second "
            f"half, {astuple(rest)[at]:9.2f} at rest, {astuple(before)[at]:9.2f} before"
        )
        if field.name.endswith("mib") and seen.growth > MAX_GROWTH * seen.median:
            found.append(f"{field.name} grows")
    if rest.kv_used or rest.admitted:
        found.append("something is still in use")
    if rest.tasks > before.tasks + 2:
        found.append(f"{rest.tasks - before.tasks} tasks are left")
    return found


async def run(minutes: float) -> list[str]:
    with tempfile.TemporaryDirectory() as directory, RedisServer() as redis:
        # Wide, so that images of few tokens fill the caches.
        spec = RandomSpec(vision_hidden_size=1024)
        model_dir = write_random_checkpoint(Path(directory) / "model", spec)
        settings = DecoderSettings(
            listen="127.0.0.1:0",
            model_dir=model_dir,
            redis_url=redis.url,
            context_length=CONTEXT_LENGTH,
            max_images=8,
            cache_bytes=CACHE_BYTES,
            engine_cache_bytes=CACHE_BYTES,
            kv_cache_bytes=CACHE_BYTES,
            log_level="error",
        )
        tier = DecoderTier(settings)
        async with running(tier, settings) as addresses:
            before = sample(tier)
            given = (addresses.grpc, str(redis.port), str(model_dir), str(minutes * 60))
            other = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.decoder.soak", "--load", *given
            )
            samples: list[Sample] = []
            while other.returncode is None:
                samples.append(sample(tier))
                await asyncio.sleep(SAMPLE_SECONDS)
            rest = await _at_rest(lambda: sample(tier), before)
            found = problems(samples, rest, before)
            return [*found, *(["the load ended badly"] if other.returncode else [])]


async def _at_rest(look: Callable[[], Sample], before: Sample) -> Sample:
    """Once nothing is in use, or after half a minute: what a call leaves goes soon after it."""
    deadline = time.monotonic() + 30
    while True:
        seen = look()
        is_quiet = not seen.admitted and not seen.kv_used and seen.tasks <= before.tasks
        if is_quiet or time.monotonic() > deadline:
            return seen
        await asyncio.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.decoder.soak", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--load", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load:
        address, port, model_dir, seconds = given.load
        statuses = asyncio.run(load(address, int(port), Path(model_dir), float(seconds)))
        print(f"{statuses.total()} calls: {dict(statuses.most_common())}")
        return
    # What the calls get wrong is no news.
    logging.disable(logging.ERROR)
    os.environ.update(ENGINE_CACHES)
    # All cross to the engine as large ones do.
    memory_files.LEAST_BYTES = 1
    found = asyncio.run(run(given.minutes))
    print("; ".join(found) or "nothing grows, and nothing is left")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
