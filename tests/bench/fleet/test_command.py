"""The command's arguments, and a report without a run."""

import argparse
from pathlib import Path
from typing import Any

import pytest

import bench.fleet.__main__ as command
from bench.fleet.results import Results
from bench.fleet.sides import COLOCATED, SPLIT, STICKY

GPUS = ["4", "5", "6"]
TURN: dict[str, Any] = {
    "answered_per_second": 1.0,
    "ttft": {"p50": 1.0, "p90": 1.0, "p99": 1.0},
    "tpot": None,
    "refused": 0,
    "failed": {},
    "moved": 0,
}


def run(monkeypatch: pytest.MonkeyPatch, gpus: list[str], *arguments: str) -> None:
    monkeypatch.setattr(command, "gpus_here", lambda: gpus)
    monkeypatch.setattr("sys.argv", ["bench.fleet", *arguments])
    command.main()


def test_numbers_of_gpus_are_a_list_in_their_order() -> None:
    assert command.counts("4,1,2,2") == [1, 2, 4]


@pytest.mark.parametrize("text", ["", "0", "2,-1", "two", "1.5"])
def test_a_number_below_one_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        command.counts(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "2,4"], "4 GPUs are named, and this machine has 3\n"),
        (["--gpus", "2", "--service-times", "none"], "none is no file"),
    ],
)
def test_what_cannot_be_run_is_refused_in_a_line_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, GPUS, *arguments, "--out", str(tmp_path))
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert said.count("\n") == 1


def test_results_that_are_whole_are_reported_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = {"model": "Pixtral-12B", "on": "GPU", "kv_cache_bytes": 12 * 10**9}
    results = Results(tmp_path, settings)
    for side in (STICKY, SPLIT):
        results.add(2, "new images", "Some.", side, TURN)
    asked = ["--gpus", "2", "--only", "new images", "--turns", "1", "--out", str(tmp_path)]
    run(monkeypatch, [], *asked, "--sides", STICKY, SPLIT)
    printed = capsys.readouterr().out
    assert "new images, 2 GPUs" in printed
    assert "predictions are within 20%" in printed
    assert (tmp_path / "fleet.svg").exists()
    # The simulator has two stock servers and, beside one encoder, one decoder.
    predicted = Results(tmp_path, settings).runs["2"]["new images"]["predicted"]
    rates = {side: each["answered_per_second"] for side, each in predicted.items()}
    assert 1.5 < rates[STICKY] / rates[SPLIT] < 2.1
    with pytest.raises(SystemExit):
        run(monkeypatch, [], *asked, "--sides", STICKY, SPLIT, COLOCATED)
