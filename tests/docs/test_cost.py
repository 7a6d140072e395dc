"""docs/cost.md: its figures are those of the benchmarks that it names, and its sums are right."""

import re
import subprocess
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "cost.md").read_text("utf-8")
ONE_CARD = (DOCS / "benchmarks/2026-11-30-one-h200.md").read_text("utf-8")
SIMULATED = (DOCS / "benchmarks/2026-11-scaling.md").read_text("utf-8")
NUMBER = r"(\d+(?:\.\d+)?)"
RATES = re.findall(rf"^\| ([^|]+?) \|{rf' {NUMBER} [|]' * 4}$", PAGE, re.MULTILINE)
FLEETS = re.findall(
    r"^\| (\d+), (0(?:\.\d)?) \| (\d+) \| (\d*) ?\| (\d+) \| vLLM", PAGE, re.MULTILINE
)


@pytest.mark.parametrize(("workload", "ours", "stock", "our_hours", "stock_hours"), RATES)
def test_rates_are_measured_and_hours_follow(
    workload: str, ours: str, stock: str, our_hours: str, stock_hours: str
) -> None:
    table = ONE_CARD.split(f"\n| {workload} | stock vLLM | pixtral-serve |", 1)[1]
    measured = re.search(rf"^\| requests/s \| {NUMBER} \| {NUMBER} \|", table, re.MULTILINE)

    assert measured is not None
    assert measured.groups() == (stock, ours)
    for rate, hours in ((ours, our_hours), (stock, stock_hours)):
        assert f"{1e6 / 3600 / float(rate):.1f}" == hours


def test_the_page_has_workloads_that_are_lost_too() -> None:
    assert len(RATES) == 7
    assert any(float(ours) < float(stock) for _, ours, stock, _, _ in RATES)


@pytest.mark.parametrize(("rate", "reuse", "split", "together", "stock"), FLEETS)
def test_gpus_are_those_of_the_simulation(
    rate: str, reuse: str, split: str, together: str, stock: str
) -> None:
    # The newer service times are in the table that has co-located fleets.
    tables = [each.split("\n\n")[0] for each in SIMULATED.split(f"\n| {rate} requests/s |")[1:]]
    (table,) = (each for each in tables if ("co-located" in each) == bool(together))
    rows = table.split(f"\n| reuse {reuse}: ", 1)[1].splitlines()[: 3 if together else 2]
    gpus = [row.split("|")[4 if at == 0 else 5].strip() for at, row in enumerate(rows)]

    assert gpus == [each for each in (split, together, stock) if each]


def test_there_are_four_fleets() -> None:
    assert len(FLEETS) == 4


def test_the_example_prints_what_the_page_says() -> None:
    (block,) = (each for each in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if "awk" in each)
    printed = subprocess.run(
        ["bash", "-euc", block], capture_output=True, text=True, check=True, timeout=60
    ).stdout

    assert f"prints `{printed.strip()}`" in PAGE
