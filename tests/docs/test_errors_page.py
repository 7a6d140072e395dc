"""docs/errors.md has every reason of the proto."""

from pathlib import Path

import pytest

from pixtral.v1 import chat_pb2
from tools import errors_page
from tools.errors_page import PAGE, reasons

PREFIX = "ERROR_REASON_"


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors_page.main(["--check"]) == 0, capsys.readouterr().out


def test_every_reason_is_on_the_page() -> None:
    names: list[str] = chat_pb2.ErrorReason.keys()
    named = {name.removeprefix(PREFIX) for name in names} - {"UNSPECIFIED"}

    assert {reason.name for reason in reasons()} == named
    assert all(f"| `{name}` |" in PAGE.read_text("utf-8") for name in named)


def test_a_page_of_before_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(errors_page, "PAGE", tmp_path / "errors.md")
    (tmp_path / "errors.md").write_text(errors_page.page().replace("400", "422"), "utf-8")

    assert errors_page.main(["--check"]) == 1
    assert "python -m tools.errors_page" in capsys.readouterr().out
