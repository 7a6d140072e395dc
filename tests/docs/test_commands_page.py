"""docs/commands.md has every command and flag."""

from pathlib import Path

import pytest

from tools import commands_page


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands_page.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--served-model-name", "--max-tokens", "--first-token"])
def test_flags_are_on_the_page_with_their_text(flag: str) -> None:
    (row,) = [line for line in commands_page.page().splitlines() if f"`{flag} " in line]

    assert row.split("|")[3].strip()


def test_a_page_of_before_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands_page, "PAGE", tmp_path / "commands.md")
    (tmp_path / "commands.md").write_text(commands_page.page().replace("--port", "--door"), "utf-8")

    assert commands_page.main(["--check"]) == 1
    assert "python -m tools.commands_page" in capsys.readouterr().out
