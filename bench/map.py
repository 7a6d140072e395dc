"""`AsyncClient.map` against a real gateway with a third fewer permits than requests at once.

    python -m bench.map --model-dir .cache/random-pixtral

A stand-in answers for encoder and decoder. Each image is another one. Prints how many requests were
sent and refused, and what is left at the gateway and in the client after a second map that is ended
in the middle.
"""

import argparse
import asyncio
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from bench.gateway import stack
from bench.pictures import jpeg
from pixtral_cli.stack.process_stack import Stack
from pixtral_client import AsyncClient, BatchProgress


def about_images(count: int, first: int = 0) -> Iterator[Any]:
    image = jpeg(0, 256, 256)
    for number in range(first, first + count):
        # Bytes after its end make another image of it.
        yield [{"role": "user", "content": [image + f"{number}".encode(), f"Image {number}?"]}]


def value(running: Stack, name: str) -> float:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = f"http://{running.addresses['gateway'].metrics}/metrics"
    with direct.open(url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


async def measure(running: Stack, count: int, concurrency: int) -> None:
    seen: list[BatchProgress] = []
    # The stand-in takes the seed as its milliseconds for each token.
    answer: dict[str, Any] = {"max_tokens": 100, "seed": 10}
    async with AsyncClient(running.target) as client:
        start = time.monotonic()
        outcomes = client.map(
            about_images(count), concurrency=concurrency, progress=seen.append, **answer
        )
        came = [outcome async for outcome in outcomes]
        seconds = time.monotonic() - start
        answered = sum(outcome.completion is not None for outcome in came)
        in_order = [outcome.index for outcome in came] == list(range(count))
        sent = seen[-1].sent
        print(f"{answered} of {count} answered in {seconds:.1f} s, in order: {in_order}")
        print(f"sent {sent}, refused {sent - count}: {sent / count:.2f} times")

        more = client.map(about_images(count, count), concurrency=concurrency, **answer)
        async with aclosing(more):
            async for outcome in more:
                if outcome.index == count // 10:
                    break
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        print(f"ended in the middle: {len(tasks)} tasks of the client left")


def left(running: Stack) -> float:
    """The permits in use once none is, or after ten seconds."""
    deadline = time.monotonic() + 10
    while (permits := value(running, "pixtral_gateway_permits_in_use")) > 0:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return permits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=24, help="the client's (%(default)s)")
    parser.add_argument("--permits", type=int, default=16, help="the gateway's (%(default)s)")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="pixtral-bench-") as logs,
        stack(options.model_dir, options.permits, Path(logs)) as running,
    ):
        asyncio.run(measure(running, options.images, options.concurrency))
        print(f"ended in the middle: {left(running):.0f} permits of the gateway left")


if __name__ == "__main__":
    main()
