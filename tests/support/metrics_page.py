"""Reads docs/metrics.md for tests."""

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
TIERS = ("gateway", "encoder", "decoder")


@dataclass(frozen=True, slots=True)
class Described:
    type: str
    labels: frozenset[str]
    unit: str
    tiers: frozenset[str]


def read_page() -> dict[str, Described]:
    """The rows of all tables, by the name of the metric."""
    rows: dict[str, Described] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = re.fullmatch(r"`([\w:]+)`", cells[0])
        if not name:
            continue
        _, kind, labels, unit, tiers, meaning = cells
        assert name[1] not in rows, f"{name[1]} is described twice"
        assert meaning, f"{name[1]} has no meaning"
        rows[name[1]] = Described(
            kind, _items(labels), unit, frozenset(TIERS) if tiers == "all" else _items(tiers)
        )
    return rows


def base_name(series: str, page: dict[str, Described]) -> str:
    """The metric of a series, which for a histogram has a suffix."""
    for suffix in ("_bucket", "_sum", "_count"):
        stem = series.removesuffix(suffix)
        if stem != series and stem in page and page[stem].type == "histogram":
            return stem
    return series


def _items(cell: str) -> frozenset[str]:
    return frozenset(filter(None, (item.strip() for item in cell.split(","))))
