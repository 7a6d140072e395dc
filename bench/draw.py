"""Draws the dashboards as images, from their JSON and the data of a Prometheus server."""

import json
import math
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, PercentFormatter

from bench.prometheus import Prometheus, filled
from tools.expressions import DEPLOY

COLUMNS = 3
STEP_SECONDS = 5
MOST_LEGENDS = 8


def draw(server: Prometheus, begin: float, end: float, directory: Path) -> list[Path]:
    """Writes one image for each dashboard; returns the paths. Times are Unix seconds."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for source in sorted((DEPLOY / "grafana").glob("*.json")):
        board = json.loads(source.read_text(encoding="utf-8"))
        graphs = [panel for panel in board["panels"] if panel["type"] == "timeseries"]
        rows = math.ceil(len(graphs) / COLUMNS)
        figure, axes = plt.subplots(rows, COLUMNS, figsize=(15, 2.9 * rows), squeeze=False)
        for place, axis in enumerate(axes.flat):
            if place < len(graphs):
                draw_graph(axis, graphs[place], server, begin, end)
            else:
                axis.axis("off")
        figure.suptitle(board["title"], fontsize=14)
        figure.tight_layout(rect=(0, 0, 1, 0.99))
        path = directory / f"{source.stem}.png"
        figure.savefig(path, dpi=64)
        plt.close(figure)
        paths.append(path)
    return paths


def draw_graph(
    axis: Axes, panel: dict[str, Any], server: Prometheus, begin: float, end: float
) -> None:
    lines: list[tuple[float, Line2D]] = []
    for target in panel["targets"]:
        series = server.get(
            "api/v1/query_range",
            query=filled(target["expr"]),
            start=str(begin),
            end=str(end),
            step=str(STEP_SECONDS),
        )["data"]["result"]
        for each in series:
            seconds = [float(at) - begin for at, _ in each["values"]]
            values = [float(value) for _, value in each["values"]]
            (line,) = axis.plot(
                seconds, values, label=legend(target["legendFormat"], each["metric"])
            )
            highest = max((value for value in values if not math.isnan(value)), default=0.0)
            lines.append((highest, line))
    axis.set_title(panel["title"], fontsize=10)
    axis.set_ylim(bottom=0)
    axis.set_xlim(0, end - begin)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
    if panel["fieldConfig"]["defaults"]["unit"] == "percentunit":
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    lines.sort(key=lambda line: line[0], reverse=True)
    if lines:
        handles = [line for _, line in lines[:MOST_LEGENDS]]
        axis.legend(handles=handles, fontsize=7, loc="lower right")


def legend(text: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name[1], ""), text)
