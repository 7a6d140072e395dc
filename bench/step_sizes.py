"""The curve of `chunked_prefill_size` beside stock vLLM: how fast tokens come, and how evenly.

    python -m bench.step_sizes
    python -m bench.step_sizes --model-dir .cache/random-pixtral    # on a CPU, to try this command

Stock vLLM and pixtral-serve run on one GPU of 140 GB at the same time, as `bench.one_card` has
them. Each size is set in the running decoder, so that one engine has all sizes, by turns with stock
vLLM, and each size gets the same requests. The workload is vLLM's random-mm, in which
images arrive while answers are written; `--workload` names another one of `bench/workloads.py`.

Prints the medians of the turns as a table, and keeps every number in step_sizes.json in `--out`.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import uvloop

from bench.compare import pixtral_12b
from bench.decoder_steps import DIAL, SCHEDULER, Dial, Steps, make_dial
from bench.doors import open_door
from bench.mix import Album
from bench.module_path import ROOT
from bench.one_card import RESULTS, Side, ask, servers
from bench.one_card_report import METRICS, STOCK_VLLM, about_run, number, unanswered
from bench.servers import Address, started
from bench.workloads import PUBLIC, Author, Workload

FILE = "step_sizes.json"
OURS = "pixtral-serve"
# vLLM's own limit of a step on an H100 or H200, which the decoder keeps where no answer waits.
MOST = 8192
SIZES = (768, 1536, 3072, 8192)

Turns = dict[str, list[Mapping[str, Any]]]


async def measure(
    addresses: Mapping[str, Address],
    workload: Workload,
    sizes: Sequence[int],
    turns: int,
    is_small: bool,
    keep: Path,
) -> Turns:
    """The summaries of each side's turns; the sides are stock vLLM and each size."""
    album = Album(workload.sizes)
    album.make()
    numbers, dial, found = itertools.count(), Dial(), Turns()
    sides = [STOCK_VLLM, *map(str, sizes)]
    # The first turn warms up, and is not counted.
    for turn in range(-1, turns):
        # Each side is early in some turns and late in others.
        shift = turn % len(sides)
        for side in [*sides[shift:], *sides[:shift]]:
            # The same requests for each, about images that nobody has seen.
            rng = random.Random(f"{workload.name} {turn}")
            sessions = workload.sessions(Author(album, rng, numbers, is_small))
            if turn < 0:
                del sessions[1 + len(sessions) // 8 :]
            if side != STOCK_VLLM:
                dial.turn(Steps(MOST, int(side)))
            url, model = addresses[STOCK_VLLM if side == STOCK_VLLM else OURS]
            async with open_door(url, None, model) as door:
                summary = await ask(door, workload, sessions, seed=turn)
            if turn < 0:
                continue
            found.setdefault(side, []).append(summary)
            print(f"turn {turn + 1}, {side}: {_numbers([summary])}", flush=True)
            write(keep, workload, found)
    return found


def write(path: Path, workload: Workload, found: Turns) -> None:
    about = {**about_run("bench.step_sizes"), "workload": workload.what}
    path.write_text(json.dumps({"about": about, "turns": found}, indent=1) + "\n", "utf-8")


def table(found: Turns) -> str:
    """Markdown: a side a row, the medians over its turns."""
    shown = [metric for metric in METRICS if metric.of(found[STOCK_VLLM]) is not None]
    units = (f"{each.name}{', ' if each.unit else ''}{each.unit}" for each in shown)
    lines = [f"| tokens of a step beside answers | {' | '.join(units)} |"]
    lines.append("|---" * (len(shown) + 1) + "|")
    for side, turns in sorted(
        found.items(), key=lambda each: (each[0] == STOCK_VLLM, len(each[0]))
    ):
        values = (metric.of(turns) for metric in shown)
        cells = ("" if value is None else number(value) for value in values)
        lines.append(f"| {side}{unanswered(turns)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _numbers(turns: Sequence[Mapping[str, Any]]) -> str:
    values = ((metric.name, metric.of(turns)) for metric in METRICS)
    shown = (f"{name} {value:.4g}" for name, value in values if value is not None)
    return ", ".join(shown) + unanswered(turns)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.step_sizes",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="TOKENS")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--workload", default="random-mm")
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "step_sizes")
    args = parser.parse_args()
    is_small = args.model_dir is not None
    named = {each.name: each.small() if is_small else each for each in PUBLIC}
    if args.workload not in named:
        parser.error(f"there is no {args.workload}; there are: {'; '.join(named)}")
    args.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model_dir = args.model_dir or pixtral_12b(directory)
        os.environ[DIAL] = str(directory / "dial")
        make_dial(directory / "dial", Steps(MOST, args.sizes[0]))
        flags = ["--engine-args", f"scheduler_cls={SCHEDULER}"]
        variables = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        sides = {STOCK_VLLM: Side(), OURS: Side(flags, variables)}
        logs = RESULTS / "step_sizes_logs"
        logs.mkdir(parents=True, exist_ok=True)
        print(f"starting; logs are in {logs}", flush=True)
        addresses = stack.enter_context(
            started(servers(sides, model_dir, is_small, are_many=True, directory=logs))
        )
        work = measure(
            addresses, named[args.workload], args.sizes, args.turns, is_small, args.out / FILE
        )
        print(table(uvloop.run(work)))


if __name__ == "__main__":
    main()
