"""Whether the whole stack copes with its load: at capacity, at ten times that, and afterwards.

    make bench-held

Finds the capacity (see `bench.capacity`), offers it for ten minutes, and then ten times it for two.
Arrivals are random, so the rate stays low enough that a ten-minute run hardly ever finds all
permits taken. At capacity the stack may refuse nothing. At both rates the p99 of accepted requests'
first tokens must stay below twice an idle stack's. Ten seconds after the flood nothing may be in
use. The load generator shares the machine with the tiers. Prints which conditions held, and writes
them to bench/results/.
"""

import argparse
import asyncio
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.capacity import Capacity, find, unrefused
from bench.load import loaded
from bench.module_path import ROOT
from bench.stack_state import Watched, watched

TIMES = 10
IDLE_SECONDS = 10.0


async def measure(stack: Watched, args: argparse.Namespace) -> dict[str, Any]:
    url = f"grpc://{stack.stack.target}"
    if args.rate is None:
        capacity = await find(url, args.step_seconds)
        rate = unrefused(args.permits, capacity.answer, args.minutes * 60)
        capacity = replace(capacity, rate=min(capacity.rate, rate))
    else:
        capacity = Capacity(args.rate, args.idle_ms / 1e3)
    before = await asyncio.to_thread(stack.sample)
    once = await loaded(url, request_rate=capacity.rate, seconds=args.minutes * 60, seed=11)
    flood = await loaded(
        url, request_rate=TIMES * capacity.rate, seconds=args.minutes * 12, seed=12
    )
    seconds, left = await stack.idle_after(IDLE_SECONDS)
    return {
        "capacity": asdict(capacity),
        "once": once,
        "flood": flood,
        "idle_after_seconds": seconds,
        "left": left,
        "before": before,
        "after": await asyncio.to_thread(stack.sample),
        "amiss": {
            "at capacity": capacity.why_not_held(once),
            f"at {TIMES} times that": capacity.why_late(flood),
            "after it": [f"{name} is {value:g}" for name, value in left.items()],
        },
    }


def table(found: dict[str, Any]) -> str:
    idle = found["capacity"]["idle"]
    lines = [
        f"capacity {found['capacity']['rate']:.2f} requests/s; idle first token p99 "
        f"{idle * 1e3:.0f} ms",
        "offered      sent/s  answered/s  refused/s   first token p50 / p99   of idle   late p99",
    ]
    for name in ("once", "flood"):
        seen = found[name]
        ttft, per = seen["ttft"] or {"p50": float("nan"), "p99": float("nan")}, seen["seconds"]
        lines.append(
            f"  {name:9}{seen['sent'] / per:8.1f}{seen['answered_per_second']:12.1f}"
            f"{seen['refused'] / per:11.1f}{ttft['p50'] * 1e3:14.0f} /{ttft['p99'] * 1e3:6.0f}"
            f"{ttft['p99'] / idle:9.1f}x{seen['late']['p99'] * 1e3:8.0f} ms"
        )
    lines.append(f"idle {found['idle_after_seconds']:.1f} s after the flood's last answer")
    memory = [name for name in found["before"] if name.endswith("memory MiB")]
    lines += [f"  {n:22}{found['before'][n]:8.0f} before,{found['after'][n]:8.0f}" for n in memory]
    lines += [f"{what}: {', '.join(amiss) or 'held'}" for what, amiss in found["amiss"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="at capacity; a fifth of them at ten times it"
    )
    parser.add_argument("--permits", type=int, default=8, help="permits of the gateway")
    parser.add_argument(
        "--step-seconds", type=float, default=30.0, help="seconds of a step of the search"
    )
    parser.add_argument("--rate", type=float, help="the capacity, if it is known")
    parser.add_argument("--idle-ms", type=float, help="with --rate: an idle first token's p99")
    args = parser.parse_args()
    if (args.rate is None) != (args.idle_ms is None):
        parser.error("--rate and --idle-ms go together")
    results = ROOT / "bench" / "results"
    results.mkdir(parents=True, exist_ok=True)
    logs = results / "held-logs"
    with watched(args.model_dir, permits=args.permits, log_dir=logs) as stack:
        found = asyncio.run(measure(stack, args))
    text = table(found)
    print(text)
    (results / "held.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    (results / "held.txt").write_text(text + "\n", "utf-8")
    sys.exit(any(found["amiss"].values()))


if __name__ == "__main__":
    main()
