"""The results of `bench.fleet` as tables and a plot: sides, predictions, scaling efficiency."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.fleet.sides import STOCK_SIDES, TITLES
from bench.one_card_report import RATE, Metric, Summary, number, unanswered

PLOT = "fleet.svg"
P90 = Metric("first token, p90", "ms", ("ttft", "p90"))
METRICS = (
    RATE,
    Metric("first token, p50", "ms", ("ttft", "p50")),
    P90,
    Metric("first token, p99", "ms", ("ttft", "p99")),
    Metric("time per output token, mean", "ms", ("tpot", "mean")),
    Metric("time per output token, p99", "ms", ("tpot", "p99")),
)
# A prediction is right where it is off by no more than this share.
WITHIN = 0.2
COLOURS = dict(zip(TITLES, ("#b0b0b0", "#707070", "#4f83b5", "#2a7f62"), strict=True))

# Runs by the number of GPUs and the workload; see `bench.fleet.results.Results`.
Runs = Mapping[str, Mapping[str, Mapping[str, Any]]]


def line(found: Summary) -> str:
    """One turn."""
    seen = [
        f"{metric.name} {number(value)}{' ' * bool(metric.unit)}{metric.unit}"
        for metric in METRICS
        if (value := metric.of([found])) is not None
    ]
    return ", ".join(seen) + unanswered([found]) + _moved([found])


def tables(runs: Runs, unit: str) -> Iterator[str]:
    """All of them in Markdown; `unit` is the unit of a fleet's size."""
    for count in _counts(runs):
        for name, run in runs[str(count)].items():
            yield f"\n{name}, {several(count, unit)}: {run['what']}\n"
            yield from comparison(run["turns"])
            if "predicted" in run:
                yield ""
                yield from predictions(run["turns"], run["predicted"])
    if len(_counts(runs)) > 1:
        yield f"\nScaling: requests/s by the number of {unit}s, and the efficiency\n"
        yield from efficiency(runs, unit)


def comparison(turns: Mapping[str, Sequence[Summary]]) -> Iterator[str]:
    """A side a row: medians and, of ours, ratios to the better of stock vLLM's sides in the same
    column; a loss is bold."""
    columns = [f"{each.name}{', ' * bool(each.unit)}{each.unit}" for each in METRICS]
    yield f"| | turns | {' | '.join(columns)} | not answered, moved |"
    yield "|---|---" + "|---" * len(METRICS) + "|---|"
    stock = [turns[side] for side in STOCK_SIDES if side in turns]
    for side, title in TITLES.items():
        if side not in turns:
            continue
        cells = []
        for metric in METRICS:
            value = metric.of(turns[side])
            theirs = [found for each in stock if (found := metric.of(each)) is not None]
            if value is None:
                cells.append("")
            elif side in STOCK_SIDES or not theirs:
                cells.append(number(value))
            else:
                best = max(theirs) if metric.more_is_better else min(theirs)
                cells.append(f"{number(value)} ({_ratio(metric, value / best)})")
        missing = f"{unanswered(turns[side])}{_moved(turns[side])}".removeprefix("; ")
        yield f"| {title} | {len(turns[side])} | {' | '.join(cells)} | {missing} |"


def predictions(
    turns: Mapping[str, Sequence[Summary]], predicted: Mapping[str, Summary]
) -> Iterator[str]:
    """A side a row: the simulator's figure, and its ratio to the measured one."""
    yield f"| predicted (by measured) | {' | '.join(each.name for each in METRICS)} |"
    yield "|---" + "|---" * len(METRICS) + "|"
    ratios = []
    for side in (side for side in TITLES if side in turns and side in predicted):
        cells = []
        for metric in METRICS:
            ours, measured = metric.of([predicted[side]]), metric.of(turns[side])
            if ours is None or not measured:
                cells.append("")
                continue
            ratios.append(ours / measured)
            verdict = "" if is_within(ratios[-1]) else ", not within 20%"
            cells.append(f"{number(ours)} ({ratios[-1]:.2f}{verdict})")
        yield f"| {TITLES[side]} | {' | '.join(cells)} |"
    yield ""
    yield f"{sum(map(is_within, ratios))} of {len(ratios)} predictions are within 20%."


def is_within(ratio: float) -> bool:
    return abs(ratio - 1) <= WITHIN


def efficiency(runs: Runs, unit: str) -> Iterator[str]:
    """Requests a second of each side and, from the fewest that it was measured on, the share of
    what as many times more would be."""
    counts = _counts(runs)
    yield f"| workload | side | {' | '.join(several(count, unit) for count in counts)} |"
    yield "|---|---" + "|---" * len(counts) + "|"
    names = dict.fromkeys(name for count in counts for name in runs[str(count)])
    for name in names:
        for side, title in TITLES.items():
            rates = {
                count: rate
                for count in counts
                if (rate := RATE.of(_turns(runs, count, name, side))) is not None
            }
            if not rates:
                continue
            first = min(rates)
            cells = []
            for count in counts:
                if count not in rates:
                    cells.append("")
                elif count == first:
                    cells.append(number(rates[count]))
                else:
                    share = rates[count] / count / (rates[first] / first)
                    cells.append(f"{number(rates[count])} ({share:.0%})")
            yield f"| {name} | {title} | {' | '.join(cells)} |"


def plot(runs: Runs, unit: str, path: Path) -> None:
    """Requests a second and p90 of first tokens, a column for each workload; a prediction is a
    line across its bar."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    counts = _counts(runs)
    names = list(dict.fromkeys(name for count in counts for name in runs[str(count)]))
    # Text stays text; fixed ids, so that the same numbers make the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fleet"}):
        figure, axes = plt.subplots(
            2, len(names), figsize=(3.2 * len(names), 6), squeeze=False, layout="constrained"
        )
        for column, name in enumerate(names):
            for axis, metric in zip(axes[:, column], (RATE, P90), strict=True):
                _draw(axis, runs, counts, name, metric)
                axis.set_xticks(range(len(counts)), [str(count) for count in counts])
                axis.set_xlabel(f"{unit}s")
            axes[0, column].set_title(name, fontsize=10)
        for axis, metric in zip(axes[:, 0], (RATE, P90), strict=True):
            axis.set_ylabel(f"{metric.name}{', ' * bool(metric.unit)}{metric.unit}")
        handles: list[Any] = [
            mpl.patches.Patch(color=COLOURS[each], label=TITLES[each]) for each in TITLES
        ]
        handles.append(mpl.lines.Line2D([], [], color="black", label="predicted"))
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def _draw(axis: Any, runs: Runs, counts: Sequence[int], name: str, metric: Metric) -> None:
    width = 0.8 / len(TITLES)
    for at, count in enumerate(counts):
        predicted = runs[str(count)].get(name, {}).get("predicted", {})
        for place, side in enumerate(TITLES):
            value = metric.of(_turns(runs, count, name, side))
            if value is None:
                continue
            left = at - 0.4 + place * width
            axis.bar(left, value, width, align="edge", color=COLOURS[side])
            if side in predicted and (ours := metric.of([predicted[side]])) is not None:
                axis.hlines(ours, left, left + width, color="black")


def several(count: int, unit: str) -> str:
    return f"{count} {unit}{'s' * (count > 1)}"


def _counts(runs: Runs) -> list[int]:
    return sorted(map(int, runs))


def _turns(runs: Runs, count: int, name: str, side: str) -> Sequence[Summary]:
    found: Sequence[Summary] = runs[str(count)].get(name, {}).get("turns", {}).get(side, ())
    return found


def _ratio(metric: Metric, ratio: float) -> str:
    return f"**{ratio:.2f}**" if metric.verdict(ratio) == "lost" else f"{ratio:.2f}"


def _moved(turns: Sequence[Summary]) -> str:
    moved = sum(turn["moved"] for turn in turns)
    return f"; {moved} sent to another server" if moved else ""
