"""Compares pixtral-serve with stock vLLM on the same checkpoint and images, one after the other.

    make bench
    python -m bench.compare --preset pixtral-12b

The workloads are text, a new image in each request, and the same image in each request. Each runs
with one request at a time and with several. Answers have one token, so that the times show only
what comes before the first token. gRPC requests share one connection. HTTP requests have one
connection for each concurrent request, on both sides. `--workers` sets the number of gateway
processes, which share the connections. Prints a table with the ratio of HTTP to HTTP, and writes
it to bench/results/.

The preset is for one GPU of 80 GB that runs all tiers: Pixtral-12B's size with random weights,
equal memory for keys and values on both sides, 4 gateway processes. Without the preset, name a
checkpoint's directory.
"""

import argparse
import asyncio
import base64
import json
import os
import platform
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import torch
from safetensors.torch import save_file

import pixtral_cli
import pixtral_client
from bench.decoder import model, plug_in
from bench.encoder import random_weights
from bench.loops import Seen, closed_loop
from bench.module_path import ROOT, module_path
from bench.pictures import jpeg
from bench.stock_vllm import prepare, stock_server

SAME = 1_000_000
KV_CACHE_BYTES = 20 * 10**9
# Gateway processes with the preset; without it, one. Stock vLLM's server has an event loop and
# threads of its own.
WORKERS = 4
STOCK = ["--dtype", "bfloat16", "--max-model-len", "16384", "--no-enable-log-requests"]
STOCK += ["--limit-mm-per-prompt", '{"image": 8}']
DOORS = 2
# Warm-up requests for each concurrent request, before the measurement.
WARM_UP = 16
# For each workload: the number of requests by how many run at once.
Counts = Mapping[str, Mapping[int, int]]
ON_CPU: Counts = {"text": {1: 40, 4: 200}, "new": {1: 6, 4: 16}, "same": {1: 30, 4: 160}}
ON_GPU: Counts = {"text": {1: 20, 32: 640}, "new": {1: 12, 32: 128}, "same": {1: 20, 32: 320}}
Workloads = dict[str, dict[str, Seen]]
AskAbout = Callable[[str, bytes | None], Awaitable[float]]


@cache
def new_pictures(requests: int) -> list[bytes]:
    """Drawn before a server starts, because a server closes connections that idle for seconds."""
    return [jpeg(n) for n in range(requests)]


def pictures(workload: str, requests: int) -> Callable[[int], bytes | None]:
    """The image of request n: none, a new one, or always the same."""
    if workload == "text":
        return lambda n: None
    if workload == "same":
        picture = jpeg(SAME)
        return lambda n: picture
    return new_pictures(requests).__getitem__


async def measure(ask: AskAbout, counts: Counts, door: int) -> Workloads:
    """`door` numbers the API (gRPC or HTTP), so that each gets images that are new to the stack."""
    seen: Workloads = {}
    # An engine that has just started is slower for a while.
    most = max(counts["text"])
    await closed_loop(
        lambda n: ask(f"Warm-up {n}: what is this?", None),
        at_once=most,
        requests=WARM_UP * most,
        first=door * WARM_UP * most,
    )
    for workload, loads in counts.items():
        each = sum(loads.values()) + 1
        first = door * each
        picture = pictures(workload, DOORS * each)

        async def one(n: int, picture: Callable[[int], bytes | None] = picture) -> float:
            return await ask(f"Question {n}: what is this?", picture(n))

        # The first request of a workload warms up: compiled shapes, caches, connections.
        await one(first)
        first += 1
        seen[workload] = {}
        for at_once, requests in loads.items():
            load = await closed_loop(one, at_once=at_once, requests=requests, first=first)
            print(f"{workload}, {at_once} at once: {_cell(load)}", flush=True)
            seen[workload][str(at_once)] = load
            first += requests
    return seen


async def measure_grpc(target: str, counts: Counts) -> Workloads:
    async with pixtral_client.AsyncClient(target, max_retries=0) as client:

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

        return await measure(ask, counts, door=0)


def http_door(
    session: aiohttp.ClientSession, url: str, model_name: str, tokens: int = 1
) -> AskAbout:
    """Asks an OpenAI server for `tokens` tokens; returns the seconds until the first arrived."""

    async def ask(question: str, picture: bytes | None) -> float:
        content: list[Any] = [{"type": "text", "text": question}]
        if picture is not None:
            data = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
            content.insert(0, {"type": "image_url", "image_url": {"url": data}})
        body = {
            "model": model_name,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        started = time.perf_counter()
        first = 0.0
        ended = False
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                event = line.replace(b" ", b"")
                ended = ended or b'"finish_reason":"length"' in event
                # The first event carries only the role, with an empty text. A token's text may be
                # empty too, so the finish reason also counts as the first token.
                has_text = b'"content":"' in event and b'"content":""' not in event
                if not first and (ended or has_text):
                    first = time.perf_counter() - started
        if not ended:
            raise RuntimeError(f"{url} did not end its answer")
        return first

    return ask


async def measure_http(url: str, model_name: str, counts: Counts) -> Workloads:
    async with aiohttp.ClientSession() as session:
        return await measure(http_door(session, url, model_name), counts, door=1)


def table(grpc: Workloads, http: Workloads, stock: Workloads) -> str:
    named = ("pixtral-serve, gRPC", "pixtral-serve, HTTP", "stock vLLM, HTTP")
    lines = [
        f"{'':24}" + "".join(f"{name:>28}" for name in named) + f"{'HTTP':>9}",
        f"{'':24}" + f"{'req/s   TTFT p50 / p95':>28}" * 3 + f"{'req/s':>9}",
    ]
    for workload, loads in stock.items():
        for at_once, b in loads.items():
            a = http[workload][at_once]
            cells = "".join(f"{_cell(seen):>28}" for seen in (grpc[workload][at_once], a, b))
            name = f"{workload}, {at_once} at once"
            lines.append(f"{name:24}{cells}{a.per_second / b.per_second:>8.2f}x")
    return "\n".join(lines)


def _cell(seen: Seen) -> str:
    return f"{seen.per_second:6.1f}  {seen.ttft_p50 * 1e3:6.0f} / {seen.ttft_p95 * 1e3:5.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--model-dir", type=Path)
    given.add_argument("--preset", choices=["pixtral-12b"])
    parser.add_argument("--workers", type=int, help="processes of the gateway")
    args = parser.parse_args()
    workers = args.workers or (1 if args.preset is None else WORKERS)
    with tempfile.TemporaryDirectory() as scratch:
        if args.preset is None:
            stock = ["--gpu-memory-utilization", "0.1"]
            compare(args.model_dir, ON_CPU, prepare(), workers, [], stock)
        else:
            made = pixtral_12b(Path(scratch))
            ours = ["--kv-cache-bytes", str(KV_CACHE_BYTES), "--engine-args", "load_format=dummy"]
            stock = ["--kv-cache-memory-bytes", str(KV_CACHE_BYTES), "--load-format", "dummy"]
            compare(made, ON_GPU, None, workers, ours, stock)


def pixtral_12b(directory: Path) -> Path:
    """Writes a checkpoint with Pixtral-12B's parameters and a random tower; vLLM fills the rest.

    Processes that start after this call find the plug-in.
    """
    model_dir = model("pixtral-12b", directory / "model")
    weights = random_weights(torch.device("cpu"), torch.bfloat16)
    save_file(weights, model_dir / "consolidated.safetensors")
    os.environ |= module_path(plug_in(directory / "plug-in"))
    return model_dir


def compare(
    model_dir: Path,
    counts: Counts,
    extra_packages: Path | None,
    workers: int,
    decoder_args: list[str],
    stock_args: list[str],
) -> None:
    results = ROOT / "bench" / "results"
    results.mkdir(parents=True, exist_ok=True)
    new_pictures(DOORS * (sum(counts["new"].values()) + 1))

    print("starting pixtral-serve", flush=True)
    with pixtral_cli.pixtral_stack(
        model_dir,
        http_listen="127.0.0.1:0",
        decoder_args=decoder_args,
        gateway_args=["--workers", str(workers)],
    ) as stack:
        print("measuring pixtral-serve, gRPC", flush=True)
        grpc = asyncio.run(measure_grpc(stack.target, counts))
        print("measuring pixtral-serve, HTTP", flush=True)
        url = f"http://{stack.http_target}"
        http = asyncio.run(measure_http(url, model_dir.resolve().name, counts))

    print("starting stock vLLM", flush=True)
    arguments = [*STOCK, *stock_args]
    with stock_server(model_dir, extra_packages, results / "stock.log", arguments) as url:
        print("measuring stock vLLM", flush=True)
        stock = asyncio.run(measure_http(url, "stock", counts))

    text = table(grpc, http, stock)
    print(text)
    named = {"pixtral_serve": grpc, "pixtral_serve_http": http, "stock_vllm": stock}
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "workers": workers,
    }
    for name, workloads in named.items():
        report[name] = {w: {k: asdict(s) for k, s in v.items()} for w, v in workloads.items()}
    (results / "compare.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (results / "compare.txt").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
