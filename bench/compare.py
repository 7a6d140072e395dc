"""pixtral-serve and stock vLLM on the same checkpoint and pictures, one after the other.

    make bench

Text, a new picture each, and the same picture each; one at a time and four at once; one token
out, so that all there is to see is what comes before the first token. Prints a table and the
ratios, and writes both to bench/results/.
"""

import argparse
import asyncio
import base64
import json
import os
import platform
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp

import pixtral_client
from bench.loops import Seen, closed_loop
from bench.pictures import jpeg
from bench.stock_vllm import prepare, stock_server

ROOT = Path(__file__).resolve().parent.parent
SAME = 1_000_000
# Requests a workload, at one at a time and at four at once.
COUNTS = {"text": (40, 200), "new": (6, 16), "same": (30, 160)}
Workloads = dict[str, dict[str, Seen]]
AskAbout = Callable[[str, bytes | None], Awaitable[float]]


def pictures(workload: str) -> Callable[[int], bytes | None]:
    """The picture of request n: none, one of its own, or always the same."""
    if workload == "text":
        return lambda n: None
    if workload == "same":
        picture = jpeg(SAME)
        return lambda n: picture
    made = {n: jpeg(n) for n in range(sum(COUNTS["new"]) + 1)}
    return lambda n: made[n]


async def measure(ask: AskAbout) -> Workloads:
    seen: Workloads = {}
    for workload, (alone, together) in COUNTS.items():
        picture = pictures(workload)

        async def one(n: int, picture: Callable[[int], bytes | None] = picture) -> float:
            return await ask(f"Question {n}: what is this?", picture(n))

        # The first of a kind warms up: compiled shapes, caches, connections.
        await one(alone + together)
        seen[workload] = {
            "1": await closed_loop(one, at_once=1, requests=alone),
            "4": await closed_loop(one, at_once=4, requests=together, first=alone),
        }
    return seen


async def measure_ours(target: str) -> Workloads:
    async with pixtral_client.AsyncClient(target) as client:

        async def ask(question: str, picture: bytes | None) -> float:
            content: list[Any] = [{"type": "text", "text": question}]
            if picture is not None:
                content.insert(0, picture)
            started = time.perf_counter()
            messages = [{"role": "user", "content": content}]
            first = 0.0
            stream = await client.stream(messages, max_tokens=1, temperature=0, ignore_eos=True)
            async with stream:
                async for _ in stream:
                    first = first or time.perf_counter() - started
            return first

        return await measure(ask)


async def measure_stock(url: str) -> Workloads:
    async with aiohttp.ClientSession() as session:

        async def ask(question: str, picture: bytes | None) -> float:
            content: list[Any] = [{"type": "text", "text": question}]
            if picture is not None:
                data = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
                content.insert(0, {"type": "image_url", "image_url": {"url": data}})
            body = {
                "model": "stock",
                "messages": [{"role": "user", "content": content}],
                "max_tokens": 1,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
            started = time.perf_counter()
            first = 0.0
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                response.raise_for_status()
                async for line in response.content:
                    # The first event names the role only; the token comes with a finish reason.
                    if not first and b'"finish_reason":"length"' in line.replace(b" ", b""):
                        first = time.perf_counter() - started
            if not first:
                raise RuntimeError("stock vLLM sent no token")
            return first

        return await measure(ask)


def table(ours: Workloads, stock: Workloads) -> str:
    lines = [
        f"{'':24}{'pixtral-serve':>28}{'stock vLLM':>28}{'ratio':>9}",
        f"{'':24}{'req/s   TTFT p50 / p95':>28}{'req/s   TTFT p50 / p95':>28}{'req/s':>9}",
    ]
    for workload in COUNTS:
        for at_once in ("1", "4"):
            a, b = ours[workload][at_once], stock[workload][at_once]
            lines.append(
                f"{workload + ', ' + at_once + ' at once':24}{_cell(a):>28}{_cell(b):>28}"
                f"{a.per_second / b.per_second:>8.2f}x"
            )
    return "\n".join(lines)


def _cell(seen: Seen) -> str:
    return f"{seen.per_second:6.1f}  {seen.ttft_p50 * 1e3:6.0f} / {seen.ttft_p95 * 1e3:5.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model-dir", type=Path, required=True)
    args = parser.parse_args()
    results = ROOT / "bench" / "results"
    results.mkdir(parents=True, exist_ok=True)

    print("starting pixtral-serve", flush=True)
    with pixtral_client.pixtral_stack(args.model_dir) as stack:
        print("measuring pixtral-serve", flush=True)
        ours = asyncio.run(measure_ours(stack.target))

    extra = ROOT / ".cache" / "stock-vllm"
    prepare(extra)
    print("starting stock vLLM", flush=True)
    arguments = ["--dtype", "bfloat16", "--max-model-len", "16384", "--no-enable-log-requests"]
    arguments += ["--gpu-memory-utilization", "0.1", "--limit-mm-per-prompt", '{"image": 8}']
    with stock_server(args.model_dir, extra, results / "stock.log", arguments) as url:
        print("measuring stock vLLM", flush=True)
        stock = asyncio.run(measure_stock(url))

    text = table(ours, stock)
    print(text)
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "pixtral_serve": {w: {k: asdict(s) for k, s in v.items()} for w, v in ours.items()},
        "stock_vllm": {w: {k: asdict(s) for k, s in v.items()} for w, v in stock.items()},
    }
    (results / "compare.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (results / "compare.txt").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
