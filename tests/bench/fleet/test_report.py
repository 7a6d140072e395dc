"""The tables and the plot of results that are made up, and the file that they are kept in."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.fleet.report import METRICS, comparison, efficiency, line, plot, predictions, tables
from bench.fleet.sides import COLOCATED, ROUND_ROBIN, SPLIT, STICKY, TITLES
from bench.one_card_report import RATE


def seen(rate: float, first: float, **more: Any) -> dict[str, Any]:
    return {
        "answered_per_second": rate,
        "ttft": {"p50": first, "p90": first, "p99": first},
        "tpot": None,
        "refused": 0,
        "failed": {},
        "moved": 0,
    } | more


def rows(lines: Iterable[str]) -> dict[str, list[str]]:
    """The cells of a table's rows by their first one; all rows have as many."""
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    assert len({len(row) for row in split}) == 1
    return {row[0]: row[1:] for row in split}


def test_ours_stands_beside_the_better_of_stocks_sides() -> None:
    turns = {
        ROUND_ROBIN: [seen(4.0, 0.2), seen(5.0, 0.1), seen(9.0, 0.3)],
        STICKY: [seen(10.0, 0.4)],
        SPLIT: [seen(8.0, 0.1)],
        COLOCATED: [seen(20.0, 0.3)],
    }
    found = rows(comparison(turns))
    assert found[TITLES[ROUND_ROBIN]][:3] == ["3", "5", "200"]
    assert found[TITLES[SPLIT]][:3] == ["1", "8 (**0.80**)", "100 (0.50)"]
    assert found[TITLES[COLOCATED]][:3] == ["1", "20 (2.00)", "300 (**1.50**)"]


def test_a_table_shows_what_was_not_answered_or_went_to_another_server() -> None:
    turns = {ROUND_ROBIN: [seen(4.0, 0.2, refused=3), seen(4.0, 0.2, moved=2)]}
    cell = rows(comparison(turns))[TITLES[ROUND_ROBIN]][-1]
    assert cell == "3 refused; 2 sent to another server"
    assert "2 sent to another server" in line(seen(4.0, 0.2, moved=2))


def test_a_prediction_that_is_off_by_more_than_a_fifth_is_named() -> None:
    turns = {ROUND_ROBIN: [seen(10.0, 0.1)], SPLIT: [seen(10.0, 0.1)]}
    predicted = {ROUND_ROBIN: seen(11.9, 0.1), SPLIT: seen(12.1, 0.079)}
    lines = list(predictions(turns, predicted))
    found = rows(lines)
    assert found[TITLES[ROUND_ROBIN]][:2] == ["11.9 (1.19)", "100 (1.00)"]
    assert found[TITLES[SPLIT]][0] == "12.1 (1.21, not within 20%)"
    assert found[TITLES[SPLIT]][1].endswith("(0.79, not within 20%)")
    assert lines[-1] == "4 of 8 predictions are within 20%."


def test_efficiency_is_from_the_fewest_gpus_that_a_side_has() -> None:
    runs = {
        "1": {"Zipf": {"turns": {STICKY: [seen(10.0, 0.1)]}}},
        "2": {"Zipf": {"turns": {STICKY: [seen(18.0, 0.1)], SPLIT: [seen(10.0, 0.1)]}}},
        "4": {"Zipf": {"turns": {STICKY: [seen(40.0, 0.1)], SPLIT: [seen(30.0, 0.1)]}}},
    }
    lines = list(efficiency(runs, "GPU"))
    cells = {each.split("|")[2].strip(): each.split("|")[3:-1] for each in lines}
    assert [cell.strip() for cell in cells[TITLES[STICKY]]] == ["10", "18 (90%)", "40 (100%)"]
    assert [cell.strip() for cell in cells[TITLES[SPLIT]]] == ["", "10", "30 (150%)"]


def test_tables_and_plot_have_every_workload_and_side(tmp_path: Path) -> None:
    turns = {side: [seen(4.0, 0.1)] for side in TITLES}
    run = {"what": "Some.", "turns": turns, "predicted": {STICKY: seen(4.0, 0.2)}}
    runs = {"2": {"Zipf": run, "ServeGen": run}, "4": {"Zipf": run}}
    text = "\n".join(tables(runs, "GPU"))
    assert text.count("Zipf, 2 GPUs") == text.count("Zipf, 4 GPUs") == 1
    assert text.count(METRICS[2].name) == 6
    plot(runs, "GPU", tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert all(text in drawn for text in ("Zipf", "ServeGen", "predicted", RATE.name))
    assert all(title in drawn for title in TITLES.values())
