"""docs/limits.md and the ranges in docs/api.md are those of the table."""

from pathlib import Path

import pytest

from pixtral_core.limits import TABLE
from tools import limits_page
from tools.limits_page import PAGE, range_of, with_ranges


def test_pages_are_those_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert limits_page.main(["--check"]) == 0, capsys.readouterr().out


def test_every_limit_is_on_the_page_with_what_it_bounds() -> None:
    text = PAGE.read_text("utf-8")
    for limit in TABLE.values():
        assert f"| {limit} | {limit.description} |" in text


def test_a_range_is_written_into_the_row_of_its_field() -> None:
    row = "| `sampling.stop` | ends an answer | 3; no more | none | `test` |\n"
    assert with_ranges(row) == row.replace("3;", f"{range_of('sampling.stop')};")
    assert with_ranges(row.replace("stop", "unknown")) == row.replace("stop", "unknown")


def test_a_changed_range_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = tmp_path / "api.md"
    stale.write_text(limits_page.API.read_text("utf-8").replace("| 0 to 2 |", "| 0 to 3 |"))
    monkeypatch.setattr(limits_page, "API", stale)
    assert limits_page.main(["--check"]) == 1
    assert "api.md" in capsys.readouterr().out
