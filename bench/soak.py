"""Runs the whole stack at 70% of its capacity for 45 minutes: nothing may grow, nothing may fail.

    make soak                 # MINUTES=45
    python -m bench.soak --model-dir DIR --minutes 8 --rate 2

Real processes, a real Redis, and the default mix, in which clients cancel a tenth of all answers.
It first fills the caches. Every few seconds it samples the memory, file descriptors, threads and
asyncio tasks of each process, and the bytes in Redis. The trend after the first third is the median
of the slopes between any two samples (Theil-Sen), which tolerates outliers. Over the remaining
time it may add no more than `ALLOWED`. After the load nothing may be in use.
"""

import argparse
import asyncio
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from bench.capacity import find
from bench.load import loaded
from bench.module_path import ROOT
from bench.stack_state import MIB, Watched, watched
from tests.support.trend import trend

SHARE = 0.7
# Enough permits that a burst waits: this test is not about refusals.
PERMITS = 64
SAMPLES = 240
REDIS_VALUES = "redis values MiB"
IDLE_SECONDS = 10.0
# The least that a decoder accepts. Filled caches cannot grow, so growth is something else.
CACHE_BYTES = 64 * MIB
REDIS_MIB = 64
FILL: dict[str, float | str] = {
    "request_rate": math.inf,
    "max_concurrency": 4,
    "sizes": "768x1024",
    "images": 1,
    "reuse": 0,
    "follow_ups": 0,
    "output_tokens": 1,
}
FILL_SECONDS = 20.0
# An embedding has 384 KiB with the small model, so this many exceed every cache.
FILL_PICTURES = 200


async def soak(stack: Watched, args: argparse.Namespace) -> dict[str, Any]:
    url = f"grpc://{stack.stack.target}"
    mix: dict[str, float | str] = {"cancels": 0.1}
    rate = args.rate or SHARE * (await find(url, args.step_seconds)).rate
    shown = 0
    while shown < FILL_PICTURES:
        filled = await loaded(url, seconds=FILL_SECONDS, **FILL)
        if not filled["answered"]:
            raise RuntimeError("the idle stack answers no request with an image")
        shown += filled["answered"]
    print(f"sent {shown} images to fill the caches", flush=True)
    print(f"{rate:.2f} requests a second for {args.minutes:g} minutes", flush=True)
    seconds = args.minutes * 60
    began = time.monotonic()
    load = asyncio.create_task(loaded(url, request_rate=rate, seconds=seconds, seed=5, **mix))
    times: list[float] = []
    samples: list[dict[str, float]] = []
    while not load.done():
        # Samples stop with the arrivals, before the last answers.
        if (at := time.monotonic() - began) < seconds:
            times.append(at)
            samples.append(await asyncio.to_thread(stack.sample))
        await asyncio.wait((load,), timeout=seconds / SAMPLES)
    seen = load.result()
    idle_after, left = await stack.idle_after(IDLE_SECONDS)
    warm = next(at for at, each in enumerate(times) if each >= seconds / 3)
    trends = [
        trend(name, times[warm:], [each[name] for each in samples[warm:]])
        for name in sorted(samples[-1])
        # Redis bounds its values, which may vary below the bound.
        if name != REDIS_VALUES
    ]
    most_redis = max(each[REDIS_VALUES] for each in samples)
    # Redis may exceed its bound by one write that it has yet to make room for, and by the buffers
    # of its clients.
    bound = REDIS_MIB + 2.0
    amiss = [f"{each.name} grows" for each in trends if each.grows]
    amiss += [f"{name} is {value:g} {idle_after:.0f} s after" for name, value in left.items()]
    amiss += [f"{count} requests ended {code}" for code, count in seen["failed"].items()]
    if seen["refused"]:
        amiss.append(f"{seen['refused']} requests were refused")
    if most_redis > bound:
        amiss.append(f"Redis held {most_redis:.0f} MiB of {REDIS_MIB}")
    return {
        "rate": rate,
        "minutes": args.minutes,
        "load": seen,
        "trends": [
            {"name": t.name, "median": t.median, "growth": t.growth, "allowed": t.allowed}
            for t in trends
        ],
        "redis_most_mib": most_redis,
        "idle_after_seconds": idle_after,
        "amiss": amiss,
        "times": times,
        "samples": samples,
    }


def table(found: dict[str, Any]) -> str:
    seen = found["load"]
    lines = [
        f"{seen['sent']} requests, {seen['answered']} answered, {seen['given_up']} cancelled, "
        f"{seen['refused']} refused, {sum(seen['failed'].values())} failed",
        f"{'after the first third':28}{'median':>10}{'growth':>10}{'allowed':>10}",
    ]
    lines += [
        f"  {t['name']:26}{t['median']:10.1f}{t['growth']:+10.2f}{t['allowed']:10.1f}"
        for t in found["trends"]
    ]
    lines += [
        f"Redis held {found['redis_most_mib']:.1f} MiB at most; "
        f"all idle {found['idle_after_seconds']:.1f} s after the last answer",
        "; ".join(found["amiss"]) or "nothing grows, nothing failed, and nothing is left",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--rate", type=float, help="requests a second (70%% of the capacity)")
    parser.add_argument(
        "--step-seconds", type=float, default=30.0, help="length of a step of the capacity search"
    )
    args = parser.parse_args()
    results = ROOT / "bench" / "results"
    results.mkdir(parents=True, exist_ok=True)
    cache = ("--cache-bytes", str(CACHE_BYTES))
    engine = ("--engine-cache-bytes", str(CACHE_BYTES), "--kv-cache-bytes", str(CACHE_BYTES))
    with watched(
        args.model_dir,
        permits=PERMITS,
        redis_max_memory=f"{REDIS_MIB}mb",
        encoder_args=cache,
        decoder_args=(*cache, *engine),
        log_dir=results / "soak-logs",
    ) as stack:
        found = asyncio.run(soak(stack, args))
    text = table(found)
    print(text)
    (results / "soak.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    (results / "soak.txt").write_text(text + "\n", "utf-8")
    sys.exit(bool(found["amiss"]))


if __name__ == "__main__":
    main()
