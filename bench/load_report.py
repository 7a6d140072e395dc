"""Reports a load as text, and as one HTML page without other files."""

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from bench.load_summary import REFUSED, SHARES, Record
from bench.loops import percentile

COLUMNS = ("mean", *(f"p{share * 100:g}" for share in SHARES), "max")
TIMES = {
    "ttft": "time to first token (TTFT)",
    "ttft_text": "  of text alone",
    "ttft_cached": "  with images from a cache",
    "ttft_encoded": "  with newly encoded images",
    "tpot": "time per output token (TPOT)",
    "itl": "gap between messages (ITL)",
    "e2el": "whole answer (E2EL)",
    "refusal": "refusal",
    "late": "delay of the generator",
}
WINDOWS = 40
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.15rem .8rem;text-align:right;"
    "border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left;white-space:pre}"
    "svg{max-width:100%;height:auto}"
)
Draw = Callable[[Axes, Sequence[Record], float], None]


def counted(found: dict[str, Any]) -> list[tuple[str, str]]:
    failed = ", ".join(f"{n} {code}" for code, n in found["failed"].items()) or "0"
    images = found["images_cached"] + found["images_encoded"]
    hits = f"{found['images_cached'] / images:.0%} of {images}" if images else "no images"
    prefix = found["prompt_cached_share"]
    return [
        ("requests sent", f"{found['sent']} in {found['seconds']:g} s"),
        ("answered", str(found["answered"])),
        ("refused", str(found["refused"])),
        ("cancelled by the load", str(found["given_up"])),
        ("failed", failed),
        ("answers/s", f"{found['answered_per_second']:.2f}"),
        ("output tokens/s", f"{found['output_tokens_per_second']:.1f}"),
        ("prompt tokens/s", f"{found['prompt_tokens_per_second']:.1f}"),
        ("images from a cache", hits),
        ("prompt tokens from the KV cache", "-" if prefix is None else f"{prefix:.0%}"),
    ]


def timed(found: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Milliseconds in the order of `COLUMNS`, for each kind of time that has values."""
    return [
        (name, [f"{found[key][column] * 1e3:.1f}" for column in COLUMNS])
        for key, name in TIMES.items()
        if found[key] is not None
    ]


def table(found: dict[str, Any]) -> str:
    lines = [f"{name:34}{value:>20}" for name, value in counted(found)]
    lines += ["", f"{'ms, from when a request was due':34}" + "".join(f"{c:>10}" for c in COLUMNS)]
    lines += [f"{name:34}" + "".join(f"{v:>10}" for v in row) for name, row in timed(found)]
    return "\n".join(lines)


def page(records: Sequence[Record], found: dict[str, Any], arriving: Any, mix: Any) -> str:
    """The whole page; `arriving` and `mix` are the dataclasses that describe the load."""
    drawn = {"Requests a second": _rates, "Delay of the generator": _late}
    if found["ttft"] is not None:
        drawn = {
            "Time to the first token": _first_tokens,
            "Percentiles": _percentiles,
            "Image cache and KV cache": _hits,
            **drawn,
        }
    given = {**asdict(arriving), **asdict(mix)}
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Load</title>",
        f"<style>{STYLE}</style><h1>Load</h1>",
        _rows(["", ""], [[name, value] for name, value in counted(found)]),
        "<h2>Milliseconds from when a request was due</h2>",
        _rows(["", *COLUMNS], [[name, *row] for name, row in timed(found)]),
        *(
            f"<h2>{title}</h2>{_svg(draw, records, found['seconds'])}"
            for title, draw in drawn.items()
        ),
        "<h2>Load</h2>",
        _rows(["", ""], [[name, str(value)] for name, value in given.items()]),
        "</html>",
    ]
    return "\n".join(parts)


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{row(heads, 'th')}{''.join(row(each, 'td') for each in rows)}</table>"


def _svg(draw: Draw, records: Sequence[Record], seconds: float) -> str:
    # Text stays text. The ids are fixed, so that the same load makes the same page.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": draw.__name__}):
        figure, axis = plt.subplots(figsize=(11, 3.4), layout="constrained")
        draw(axis, records, seconds)
        axis.grid(alpha=0.3)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
        plt.close(figure)
    return re.sub(r"^.*?(?=<svg)", "", out.getvalue(), flags=re.DOTALL)


def _first_tokens(axis: Axes, records: Sequence[Record], seconds: float) -> None:
    kinds = {"text": None, "image, cached": True, "image, encoded": False}
    seen = [each for each in records if each.first is not None]
    for label, cached in kinds.items():
        ours = [each for each in seen if each.images_cached is cached]
        times = [(each.first or 0.0) * 1e3 for each in ours]
        # A bitmap, because a long load has more points than a page can carry.
        axis.plot([e.due for e in ours], times, ".", ms=3, alpha=0.5, label=label, rasterized=True)
    for share in (0.5, 0.99):
        windows = _windows(seen, seconds)
        edges = [at for at, each in windows if each]
        values = [percentile((e.first or 0.0 for e in each), share) for _, each in windows if each]
        axis.plot(edges, [value * 1e3 for value in values], lw=1.5, label=f"p{share * 100:g}")
    axis.set(xlabel="due, s", ylabel="ms", yscale="log", xlim=(0, seconds))
    axis.legend(fontsize=8, ncols=5)


def _rates(axis: Axes, records: Sequence[Record], seconds: float) -> None:
    width = seconds / WINDOWS
    kinds: dict[str, Callable[[Record], bool]] = {
        "due": lambda each: True,
        "answered": lambda each: each.code == "OK",
        "refused": lambda each: each.code == REFUSED,
    }
    for label, has in kinds.items():
        windows = _windows([each for each in records if has(each)], seconds)
        axis.plot(
            [at for at, _ in windows], [len(each) / width for _, each in windows], label=label
        )
    axis.set(xlabel="due, s", ylabel="1/s", xlim=(0, seconds))
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)


def _percentiles(axis: Axes, records: Sequence[Record], seconds: float) -> None:
    answered = [each for each in records if each.code == "OK"]
    kinds = {
        "first token": [each.first for each in answered if each.first is not None],
        "gap": [gap for each in answered for gap in each.gaps],
        "whole answer": [each.ended for each in answered],
    }
    # Every further nine gets the same width.
    at = 1 - np.logspace(0, -3, 120)
    for label, values in kinds.items():
        if values:
            axis.plot(1 / (1 - at), np.quantile(values, at) * 1e3, label=label)
    axis.set(xscale="log", yscale="log", xlabel="percentile", ylabel="ms")
    axis.set_xticks([1, 2, 10, 100, 1000], ["0", "50", "90", "99", "99.9"])
    axis.legend(fontsize=8)


def _hits(axis: Axes, records: Sequence[Record], seconds: float) -> None:
    answered = [each for each in records if each.code == "OK"]
    shown = [each for each in answered if each.images_cached is not None]
    windows = [(at, each) for at, each in _windows(shown, seconds) if each]
    images = [sum(e.images_cached is True for e in each) / len(each) for _, each in windows]
    axis.plot([at for at, _ in windows], images, label="images from a cache")
    windows = [(at, each) for at, each in _windows(answered, seconds) if each]
    prompts = [
        sum(e.cached_tokens for e in each) / max(1, sum(e.prompt_tokens for e in each))
        for _, each in windows
    ]
    axis.plot([at for at, _ in windows], prompts, label="prompt tokens from the KV cache")
    axis.set(xlabel="due, s", ylabel="share", xlim=(0, seconds), ylim=(0, 1.05))
    axis.legend(fontsize=8)


def _late(axis: Axes, records: Sequence[Record], seconds: float) -> None:
    windows = [(at, each) for at, each in _windows(records, seconds) if each]
    for share in (0.5, 0.99):
        values = [percentile((e.late for e in each), share) * 1e3 for _, each in windows]
        axis.plot([at for at, _ in windows], values, label=f"p{share * 100:g}")
    axis.set(xlabel="due, s", ylabel="ms", xlim=(0, seconds))
    axis.legend(fontsize=8)


def _windows(records: Sequence[Record], seconds: float) -> list[tuple[float, list[Record]]]:
    """The middle of each window, and the requests that were due in it."""
    width = seconds / WINDOWS
    windows: list[list[Record]] = [[] for _ in range(WINDOWS)]
    for each in records:
        windows[min(int(each.due / width), WINDOWS - 1)].append(each)
    return [((at + 0.5) * width, each) for at, each in enumerate(windows)]
