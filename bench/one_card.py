"""Compares stock vLLM with pixtral-serve on one GPU, with both running and measured by turns.

    python -m bench.one_card
    python -m bench.one_card --many
    make bench-public
    python -m bench.one_card --mps
    python -m bench.one_card --also "--engine-args scheduler_cls=null"
    python -m bench.one_card --public --instead "--kv-host-bytes 60000000000"

`bench.compare --preset pixtral-12b` measures one after the other. Here all servers run from the
start, and while one is measured the others rest, so changes of the card's speed affect all of them
alike. Each server has its own copy of the weights and 6 GB for keys and values, which needs a GPU
of 140 GB.

Requests go over HTTP with default settings: new images and short texts, several at once and one at
a time. `--many` sends texts of 64 tokens, up to 512 at once, and 64 new images at once. `--public`
sends the loads that others publish (`bench/workloads.py` names each source). Both use 30 GB for
keys and values. `--only` selects workloads and their order. Each workload runs for `--turns` turns
after a short warm-up, and all servers get the same requests.

Results are printed as they arrive, medians and ratios when a workload ends. All results are in
one_card.json in `--out`, from which `python -m bench.one_card_report` makes tables and a plot.

`--mps` adds a pixtral-serve under its own daemon of CUDA's MPS, and `--also` one whose decoder has
more flags. `--instead` gives those flags to the only pixtral-serve, because three servers with
30 GB for keys and values each do not fit on a GPU of 140 GB. `--model-dir` tries the command with a
small model on a CPU: requests are few and short.
"""

import argparse
import contextlib
import itertools
import os
import random
import shlex
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from bench.compare import STOCK, WORKERS, pixtral_12b
from bench.doors import Answer, Door, open_door
from bench.load_summary import Record, spread, summary
from bench.loops import Outcome, at_times, gamma, in_sessions
from bench.mix import Album
from bench.module_path import ROOT
from bench.one_card_report import STOCK_VLLM, Report
from bench.servers import Address, Server, ours, started, stock
from bench.stock_vllm import prepare
from bench.workloads import FEW, MANY, PUBLIC, Author, Prompt, Workload

RESULTS = ROOT / "bench" / "results"
KV_CACHE_BYTES = 6 * 10**9
KV_CACHE_BYTES_OF_MANY = 30 * 10**9
# vLLM wants that share of the GPU to be free at its start, even if it uses less.
SHARE = 0.3
SHARE_OF_MANY = 0.42
# The decoder's default; bench.compare needs less.
CONTEXT = ["--max-model-len", "32768"]
# As much as stock vLLM reserves by default for the output of its image processor.
REDIS_MEMORY = "4gb"
# The warm-up has one session for this many sessions of a turn.
WARM_UP_SHARE = 8


@dataclass(frozen=True, slots=True)
class Side:
    """A server to measure: `flags` of its decoder, and extra environment `variables`."""

    flags: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


def servers(
    sides: Mapping[str, Side], model_dir: Path, is_small: bool, are_many: bool, directory: Path
) -> dict[str, Server]:
    """The server of each side; logs go to `directory`."""
    kv_bytes = str(kv_cache_bytes(are_many))
    share = str(SHARE_OF_MANY if are_many else SHARE)
    found = {}
    for name, side in sides.items():
        if name == STOCK_VLLM:
            given = ["--kv-cache-memory-bytes", kv_bytes, *CONTEXT]
            given += ["--load-format", "dummy", "--gpu-memory-utilization", share]
            extra = None
            if is_small:
                given, extra = ["--gpu-memory-utilization", "0.1"], prepare()
            run = partial(stock, model_dir, extra, directory / "stock.log", [*STOCK, *given])
        else:
            given = ["--kv-cache-bytes", kv_bytes, "--gpu-memory-fraction", share]
            given += ["--engine-args", "load_format=dummy"]
            run = partial(
                ours,
                model_dir,
                directory / name,
                redis_max_memory=REDIS_MEMORY,
                workers=1 if is_small else WORKERS,
                decoder_args=[*([] if is_small else given), *side.flags],
            )
        found[name] = Server(run, side.variables)
    return found


@contextlib.contextmanager
def mps_daemon(directory: Path) -> Iterator[dict[str, str]]:
    """Runs CUDA's MPS for processes that have the yielded variables in their environment."""
    pipes, logs = directory / "mps", directory / "mps-log"
    pipes.mkdir()
    logs.mkdir()
    variables = {"CUDA_MPS_PIPE_DIRECTORY": str(pipes), "CUDA_MPS_LOG_DIRECTORY": str(logs)}
    environment = os.environ | variables
    control = "nvidia-cuda-mps-control"
    subprocess.run([control, "-d"], env=environment, check=True, timeout=60)
    try:
        yield variables
    finally:
        subprocess.run([control], env=environment, input=b"quit\n", check=True, timeout=60)


async def ask_by_turns(
    sides: Mapping[str, Address],
    workloads: Sequence[tuple[Workload, int]],
    is_small: bool,
    report: Report,
) -> None:
    """Runs each workload for its number of turns; a repeated workload continues its turns."""
    numbers = itertools.count()
    asked: Counter[str] = Counter()
    for workload, turns in workloads:
        album = Album(workload.sizes)
        album.make()
        done = asked[workload.name]
        asked[workload.name] += turns
        for turn in range(done or -1, done + turns):
            rng = random.Random(f"{workload.name} {turn}")
            sessions = workload.sessions(Author(album, rng, numbers, is_small))
            if turn < 0:
                del sessions[1 + len(sessions) // WARM_UP_SHARE :]
            # The sides swap order from turn to turn.
            for side in list(sides)[:: -1 if turn % 2 else 1]:
                async with open_door(sides[side][0], None, sides[side][1]) as door:
                    found = await ask(door, workload, sessions, seed=turn)
                if turn >= 0:
                    report.add(workload, side, turn, found)
        report.end(workload)


async def ask(
    door: Door, workload: Workload, sessions: Sequence[Sequence[Prompt]], seed: int
) -> dict[str, Any]:
    """The summary of one turn, and `ttft_later`, the first tokens of a chat's later turns."""
    prompts = list(itertools.chain.from_iterable(sessions))
    answers = [Answer() for _ in prompts]
    numbers = iter(range(len(prompts)))

    async def one(number: int) -> Outcome:
        outcome: Outcome = await door(prompts[number], answers[number])
        return outcome

    began = time.perf_counter()
    if workload.at_once is None:
        times = gamma(workload.rate, workload.variation, seed)
        arrivals = await at_times(one, itertools.islice(times, len(prompts)))
    else:
        numbered = [list(itertools.islice(numbers, len(each))) for each in sessions]
        arrivals = await in_sessions(one, numbered, at_once=workload.at_once)
    seconds = time.perf_counter() - began
    later = spread(
        each.first
        for each in arrivals
        if each.first is not None and each.code == "OK" and len(prompts[each.number].questions) > 1
    )
    records = [Record.of(arrival, answers[arrival.number]) for arrival in arrivals]
    return {**summary(records, seconds), "ttft_later": later}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.one_card",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--many", action="store_true")
    parser.add_argument("--public", action="store_true")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME[=TURNS]",
        help="workloads by name, in order; one may come again for more turns",
    )
    parser.add_argument("--mps", action="store_true")
    parser.add_argument("--also", metavar="FLAGS")
    parser.add_argument("--instead", metavar="FLAGS")
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "one_card")
    args = parser.parse_args()
    is_small = args.model_dir is not None
    are_many = args.many or args.public
    named = {
        each.name: each.small() if is_small else each
        for each in [*(MANY if args.many else ()), *(PUBLIC if args.public else ())] or FEW
    }
    chosen = [each.partition("=") for each in args.only or named]
    if unknown := {name for name, _, _ in chosen} - named.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from: {'; '.join(named)}")
    workloads = [(named[name], int(turns or args.turns)) for name, _, turns in chosen]
    sides = {STOCK_VLLM: Side(), "pixtral-serve": Side()}
    if args.instead:
        sides["pixtral-serve"] = Side(flags=shlex.split(args.instead))
    if args.also:
        sides["with more flags"] = Side(flags=shlex.split(args.also))
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model_dir = args.model_dir or pixtral_12b(directory)
        if args.mps:
            sides["pixtral-serve, MPS"] = Side(variables=stack.enter_context(mps_daemon(directory)))
        logs = RESULTS / "one_card_logs"
        logs.mkdir(parents=True, exist_ok=True)
        print(f"starting {'; '.join(sides)}; their logs are in {logs}", flush=True)
        started_ones = started(servers(sides, model_dir, is_small, are_many, logs))
        urls = stack.enter_context(started_ones)
        report = Report(args.out, None if is_small else kv_cache_bytes(are_many))
        uvloop.run(ask_by_turns(urls, workloads, is_small, report))


def kv_cache_bytes(are_many: bool) -> int:
    return KV_CACHE_BYTES_OF_MANY if are_many else KV_CACHE_BYTES


if __name__ == "__main__":
    main()
