"""Fuzzes what strangers can send: images, OpenAI requests, bytes of HTTP, messages of gRPC.

    python -m tests.fuzz [--seconds 600] [--seed 0]

Images go through the readers of gateway and encoder in this process, first with a seed and then
led by atheris, while a whole stack of real processes starts, to which all else goes. What breaks is
kept under tests/fuzz/regressions, where a test replays it, and ends the run with exit code 1.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from models.random_checkpoint import write_random_checkpoint
from pixtral_core.cache.wire_format import DType
from pixtral_core.model.fingerprint import fingerprint
from pixtral_core.server.channel import open_channel
from tests.fuzz.by_schema import fuzz_by_schema
from tests.fuzz.calls import (
    REGRESSIONS,
    Found,
    Limit,
    chat_methods,
    decoder_methods,
    encoder_methods,
    fuzz_grpc,
    fuzz_http,
    fuzz_openai,
)
from tests.fuzz.images import PIXTRAL, fuzz_images, keep
from tests.support.redis_server import RedisServer
from tests.support.stack.service import Service, serve

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / ".cache" / "fuzz" / "images"
# Of the time, in tenths.
SEEDED, GUIDED, OPENAI, SCHEMA, HTTP, CHAT, ENCODER, DECODER = 1, 2, 1, 2, 1, 1, 1, 1
TENTHS = 10
CONTEXT_LENGTH = 512
# Of a process that has answered thousands of requests.
MAX_GROWTH_BYTES = 1 << 30


def fuzz(seconds: float, seed: int) -> bool:
    """Whether all held."""
    tenth = seconds / TENTHS
    began = time.monotonic()
    pool = ThreadPoolExecutor(1)
    # Of both, each waits for a process of its own most of the time.
    looking = pool.submit(images, tenth, seed)
    with (
        pool,
        tempfile.TemporaryDirectory() as directory,
        RedisServer() as redis,
        serve(
            write_random_checkpoint(Path(directory) / "model"),
            redis.url,
            Path(directory),
            # A request that has lost its max_tokens is answered to the end of the context.
            decoder_args=["--context-length", str(CONTEXT_LENGTH)],
        ) as service,
    ):
        has_held = looking.result()
        has_held &= asyncio.run(calls(service, Path(directory) / "model", tenth, seed))
    print(f"in {time.monotonic() - began:.0f} s")
    return has_held


def images(tenth: float, seed: int) -> bool:
    ended = fuzz_images(PIXTRAL, seed, seconds=SEEDED * tenth)
    print(f"images of seed {seed}: {ended.total()}")
    for ending, count in ended.most_common():
        print(f"  {count:7} {ending}")
    return guided(GUIDED * tenth, seed)


def guided(seconds: float, seed: int) -> bool:
    print(f"images, led by atheris, {seconds:.0f} s", flush=True)
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.guided", str(CORPUS)),
            # A mutated file is a few hundred bytes; what needs this much is a bomb.
            *(f"-max_total_time={seconds:.0f}", f"-seed={seed + 1}", "-rss_limit_mb=2048"),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    print(f"  {ran.stderr.splitlines()[-1]}" if ran.returncode == 0 else ran.stderr[-3000:])
    return ran.returncode == 0


async def calls(service: Service, model_dir: Path, tenth: float, seed: int) -> bool:
    addresses = service.stack.addresses
    url = f"http://{service.stack.http_target}"
    made_by = fingerprint(model_dir, DType.F32)
    before = {tier: memory(service, tier) for tier in addresses}
    has_held = True

    async def told(name: str, found: Awaitable[Found]) -> None:
        nonlocal has_held
        ended = await found
        has_held &= tell(name, ended)

    def limit(tenths: int) -> Limit:
        return Limit(seconds=tenths * tenth)

    await told("openai", fuzz_openai(url, seed, limit(OPENAI)))
    await told("schema", fuzz_by_schema(url, seed, seconds=SCHEMA * tenth))
    await told("http", fuzz_http(url, seed, limit(HTTP)))
    for tier, methods, tenths in (
        ("gateway", chat_methods(), CHAT),
        ("encoder", encoder_methods(made_by), ENCODER),
        ("decoder", decoder_methods(), DECODER),
    ):
        async with open_channel(addresses[tier].grpc, None) as channel:
            await told(tier, fuzz_grpc(channel, methods, seed, limit(tenths)))
    for tier, bytes_before in before.items():
        grown = memory(service, tier) - bytes_before
        print(f"{tier}: {grown / 2**20:+.0f} MiB")
        has_held &= grown < MAX_GROWTH_BYTES
    return has_held


def memory(service: Service, tier: str) -> float:
    return service.value(tier, "process_resident_memory_bytes")


def tell(name: str, found: Found) -> bool:
    print(f"{name}: {found.endings.total()}")
    for ending, count in found.endings.most_common():
        print(f"  {count:7} {ending}")
    for problem, sent in found.bad[:10]:
        print(f"  BROKEN: {problem}")
        keep(sent, REGRESSIONS / name)
    return not found.bad


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.exit(0 if fuzz(given.seconds, given.seed) else 1)


if __name__ == "__main__":
    main()
