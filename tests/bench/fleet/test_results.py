"""The file of finished turns."""

import json
from pathlib import Path

import pytest

from bench.fleet.results import FILE, Results
from bench.fleet.sides import SPLIT, STICKY

SETTINGS = {"model": "small"}


def test_results_are_whole_after_every_turn_and_are_read_again(tmp_path: Path) -> None:
    results = Results(tmp_path, SETTINGS)
    for rate in (4.0, 5.0):
        results.add(2, "Zipf", "Some images.", STICKY, {"answered_per_second": rate})
        read = json.loads((tmp_path / FILE).read_text())
        assert read["runs"]["2"]["Zipf"]["turns"][STICKY][-1]["answered_per_second"] == rate
    results.predict(2, "Zipf", {STICKY: {}})
    results.predict(2, "Zipf", {SPLIT: {}})
    again = Results(tmp_path, SETTINGS)
    assert again.turns(2, "Zipf", STICKY) == results.turns(2, "Zipf", STICKY)
    assert set(again.runs["2"]["Zipf"]["predicted"]) == {STICKY, SPLIT}
    assert again.turns(4, "Zipf", STICKY) == []
    again.add(2, "Zipf", "Some images.", STICKY, {})
    assert len(again.about) == 2
    assert again.about[0]["versions"]["torch"]


def test_results_of_another_model_are_not_gone_on_with(tmp_path: Path) -> None:
    Results(tmp_path, SETTINGS).add(2, "Zipf", "", STICKY, {})
    with pytest.raises(ValueError, match="--out"):
        Results(tmp_path, {"model": "another"})
