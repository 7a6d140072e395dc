"""Prints the results of `bench.decoder` as a table."""

from collections.abc import Mapping
from typing import Any

SIDES = {"ours": "pixtral-serve", "stock": "stock vLLM"}
# Each row: name, path in the report, unit.
ROWS = (
    ("TTFT, text", ("ttft_ms", "text", "p50"), "ms"),
    ("TTFT, new image", ("ttft_ms", "image", "p50"), "ms"),
    ("TTFT, new image, at hand", ("ttft_ms", "at_hand", "p50"), "ms"),
    ("fetching one", ("fetch_ms", "p50"), "ms"),
    ("TTFT, next question on it", ("ttft_ms", "next", "p50"), "ms"),
    ("TTFT, image held, no prefix", ("ttft_ms", "held", "p50"), "ms"),
    ("texts at saturation", ("per_second", "text"), "/s"),
    ("images at saturation", ("per_second", "image"), "/s"),
    ("decoding alone", ("quiet", "tokens_per_second"), "tok/s"),
    ("decoding, images arriving", ("busy", "tokens_per_second"), "tok/s"),
    ("gap p50, alone", ("quiet", "gap_ms", "p50"), "ms"),
    ("gap p50, images arriving", ("busy", "gap_ms", "p50"), "ms"),
    ("gap p99, alone", ("quiet", "gap_ms", "p99"), "ms"),
    ("gap p99, images arriving", ("busy", "gap_ms", "p99"), "ms"),
    ("longest gap, images arriving", ("busy", "gap_ms", "max"), "ms"),
    ("their TTFT p50", ("busy_image_ttft_ms", "p50"), "ms"),
    ("answered after the last arrived", ("busy_behind_seconds",), "s"),
    ("start", ("start_seconds",), "s"),
)

OF_STOCK = (
    "TTFT, text",
    "texts at saturation",
    "images at saturation",
    "decoding, images arriving",
    "gap p99, images arriving",
)


def table(report: Mapping[str, Any]) -> str:
    sides = [name for name in report if name.partition(" ")[0] in SIDES]
    lines = [f"{report['machine']}; {report['preset']}"]
    for side in sides:
        seen = report[side]
        named = ", ".join(f"{name} {value}" for name, value in seen["settings"].items())
        lines.append(f"{_title(side)}: {named}, {seen['prompt_tokens']} tokens a prompt")
    lines.append(f"{'':34}" + "".join(f"{_title(side):>20}" for side in sides))
    for row, path, unit in ROWS:
        cells = "".join(f"{_at(report[side], path):>13.2f} {unit:<6}" for side in sides)
        lines.append(f"{row:34}{cells}")
    lines += [
        f"{row:34}" + "".join(f"{_share(report[side], row):>13.3f} {'':6}" for side in sides)
        for row in _SHARES
    ]
    if "stock" in sides:
        lines += [
            f"{row + ', of stock':34}"
            + "".join(
                f"{_at(report[side], path) / _at(report['stock'], path):>13.3f} {'':6}"
                for side in sides
            )
            for row, path, _ in ROWS
            if row in OF_STOCK
        ]
    for side in sides:
        if pieces := report[side].get("handing_ms"):
            named = ", ".join(f"{name} {value:.2f}" for name, value in pieces.items())
            lines.append(f"handing one embedding over, ms: {named}")
            break
    return "\n".join(lines)


def _title(side: str) -> str:
    """The name of a column: the limits of its steps, where it has some."""
    return side.partition(" ")[2] or SIDES[side]


_SHARES = {
    "TTFT, image / text": (("ttft_ms", "image", "p50"), ("ttft_ms", "text", "p50")),
    "TTFT, image at hand / text": (("ttft_ms", "at_hand", "p50"), ("ttft_ms", "text", "p50")),
    "TTFT, next question / image": (("ttft_ms", "next", "p50"), ("ttft_ms", "image", "p50")),
    "TTFT, held image / text": (("ttft_ms", "held", "p50"), ("ttft_ms", "text", "p50")),
    "saturation, images / texts": (("per_second", "image"), ("per_second", "text")),
}


def _share(seen: Mapping[str, Any], row: str) -> float:
    above, below = _SHARES[row]
    return _at(seen, above) / _at(seen, below)


def _at(seen: Any, path: tuple[str, ...]) -> float:
    for name in path:
        seen = seen[name]
    return float(seen)
