"""Rows as pyarrow gives them, without pyarrow."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.evals.benchmarks import BENCHMARKS
from bench.evals.convert import NAMES, convert, main, rows
from bench.evals.questions import read
from tests.support.gateway_pictures import picture

PNG, JPEG = picture(40, 30), picture(40, 30, form="JPEG")


class Batch:
    def __init__(self, found: list[dict[str, Any]]) -> None:
        self.to_pylist = lambda: found


class Parquet:
    """The part of `pyarrow.parquet` that the module needs."""

    files: dict[str, list[dict[str, Any]]]

    def __init__(self, **files: list[dict[str, Any]]) -> None:
        self.files = files

    def ParquetFile(self, path: Path) -> "Parquet":  # noqa: N802
        return Parquet(only=self.files[path.stem])

    def iter_batches(self, batch_size: int) -> list[Batch]:
        found = self.files["only"]
        return [Batch(found[i : i + batch_size]) for i in range(0, len(found), batch_size)]


def test_names_are_those_of_the_benchmarks() -> None:
    assert sorted(NAMES) == sorted(each.name for each in BENCHMARKS)


def test_images_are_written_as_they_come_and_once(tmp_path: Path) -> None:
    row = {"question": "Où?", "answer": "là", "image": {"bytes": PNG, "path": None}, "type": "x"}
    others = [row | {"image": {"bytes": JPEG, "path": "a.jpg"}}] * 70
    found = rows(Parquet(a=[row], b=others), [Path("a.parquet"), Path("b.parquet")])
    assert convert("chartqa", found, tmp_path) == 71
    files = sorted((tmp_path / "images").iterdir(), key=lambda file: file.suffix)
    assert [(file.suffix, file.read_bytes()) for file in files] == [(".jpg", JPEG), (".png", PNG)]
    first = json.loads((tmp_path / "chartqa.jsonl").read_text("utf-8").split("\n")[0])
    assert first == row | {"image": f"images/{files[1].name}"}
    reader = next(each.reader for each in BENCHMARKS if each.name == "chartqa")
    questions = list(read(tmp_path / "chartqa.jsonl", reader))
    assert len(questions) == 71
    assert questions[0].messages[0]["content"][0]["image"].read_bytes() == PNG


def test_without_pyarrow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SystemExit, match="pip install pyarrow"):
        main(["chartqa", "a.parquet", "--to", "data"])
