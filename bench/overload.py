"""The real stack under five times its load: how many requests it refuses, and how fast.

    make bench-overload

Measures the throughput with all of the gateway's permits taken. Then a load generator in its own
process offers that rate, and five times that rate, by an open loop. Prints a table, with the
gateway's memory during the flood, and writes it to bench/results/.
"""

import argparse
import asyncio
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.gateway_load import Spent
from bench.module_path import ROOT
from bench.offer import Offer, Offered
from pixtral_cli import pixtral_stack

PERMITS = 16
TIMES = 5
TOKENS = 32
SAMPLE_SECONDS = 2.0


async def measure(target: str, metrics: str, seconds: float) -> dict[str, Any]:
    load = {"seconds": seconds / 2, "tokens": TOKENS}

    async def offered(**flags: float | str) -> Offered:
        return await (await Offer.start(target, **{**load, **flags})).seen()

    await offered(at_once=PERMITS, seconds=3, name="Warm-up")
    capacity = (await offered(at_once=PERMITS, name="Capacity")).answered_per_second
    print(f"capacity: {capacity:.1f} requests a second", flush=True)
    at_capacity = await offered(rate=capacity, name="Once")
    memory = [(await Spent.of(metrics)).memory_bytes]
    flood = asyncio.create_task(offered(rate=TIMES * capacity, seconds=seconds, name="Flood"))
    while not flood.done():
        await asyncio.wait((flood,), timeout=SAMPLE_SECONDS)
        memory.append((await Spent.of(metrics)).memory_bytes)
    return {
        "capacity_per_second": capacity,
        "at_capacity": asdict(at_capacity),
        "overload": asdict(flood.result()),
        "memory_bytes": memory,
    }


def table(found: dict[str, Any]) -> str:
    once, flood = found["at_capacity"], found["overload"]
    lines = [
        f"capacity {found['capacity_per_second']:.1f} requests/s of {TOKENS} tokens, "
        f"{PERMITS} permits",
        "offered       sent/s   answered/s  refused/s  others   first token p50/p99   "
        "answer p50/p99   refusal p50/p99   late p99",
    ]
    for name, seen in (("once", once), (f"{TIMES} times", flood)):
        per = seen["seconds"]
        lines.append(
            f"  {name:10}{seen['sent'] / per:8.1f}{seen['answered'] / per:12.1f}"
            f"{seen['refused'] / per:11.1f}{sum(seen['others'].values()):8}"
            + "".join(
                f"{_ms(seen[what + '_p50'])}/{_ms(seen[what + '_p99'])} ms"
                for what in ("first_token", "answer", "refusal")
            )
            + f"{_ms(seen['late_p99'])} ms"
        )
    memory = found["memory_bytes"]
    quarter = max(1, len(memory) // 4)
    lines += [
        "a refusal's p50 without the generator's own delay, "
        f"{TIMES} times: {flood['refusal_since_sent_p50'] * 1e3:.1f} ms",
        f"answers' p99 against capacity: {flood['answer_p99'] / once['answer_p99']:.2f}x; "
        f"first tokens': {flood['first_token_p99'] / once['first_token_p99']:.2f}x",
        f"the gateway's memory, MB: {memory[0] / 1e6:.1f} before, "
        f"{_mean(memory[1 : 1 + quarter]) / 1e6:.1f} in the first quarter, "
        f"{_mean(memory[-quarter:]) / 1e6:.1f} in the last, {max(memory) / 1e6:.1f} at most",
    ]
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return "      -" if math.isnan(seconds) else f"{seconds * 1e3:7.1f}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=120.0, help="seconds of the overload")
    parser.add_argument("--workers", type=int, default=1, help="gateway processes")
    args = parser.parse_args()
    results = ROOT / "bench" / "results"
    results.mkdir(parents=True, exist_ok=True)
    gateway = ["--max-concurrent-requests", str(PERMITS), "--log-level", "warning"]
    gateway += ["--workers", str(args.workers)]
    with pixtral_stack(args.model_dir, gateway_args=gateway) as stack:
        metrics = stack.addresses["gateway"].metrics
        found = asyncio.run(measure(stack.target, metrics, args.seconds))
    text = table(found)
    print(text)
    (results / "overload.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    (results / "overload.txt").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
