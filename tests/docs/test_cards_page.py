"""docs/cards.md is what doctor computes for the published shapes."""

from pathlib import Path

import pytest

from pixtral_cli.checkpoint_report import check_card
from tools import cards_page
from tools.cards_page import GB, SHAPES


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert cards_page.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        # As the publisher counts them: the language model, and the tower.
        ("Pixtral-12B-2409", 12.2 + 0.4),
        ("Mistral-Small-3.1, 3.2; Magistral-Small-2509", 23.6 + 0.4),
        ("Ministral-3-3B, Reasoning", 3.4 + 0.4),
        ("Ministral-3-8B, Reasoning", 8.4 + 0.4),
        ("Ministral-3-14B, Reasoning", 13.5 + 0.4),
        ("Pixtral-Large-2411", 122.6 + 1.0),
    ],
)
def test_the_shapes_have_as_many_parameters_as_the_models(name: str, billions: float) -> None:
    (shape,) = (shape for shape in SHAPES if shape.name == name)
    fit = cards_page.fits_of(shape)[0]
    assert (fit.tower + fit.language) / 2 / GB == pytest.approx(billions, rel=0.02)


def test_a_cell_is_what_doctor_says_of_such_files(tmp_path: Path) -> None:
    pixtral = SHAPES[0]
    cards_page.write_headers(tmp_path, pixtral)
    (finding,) = check_card(tmp_path, "a card", 40 * GB)
    (row,) = [line for line in cards_page.page().splitlines() if f"{pixtral.name} |" in line][:1]
    cell = row.split(" | ")[5]
    assert f"at most {cell.replace(',', '')} tokens" in finding.what


def test_a_page_of_before_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cards_page, "PAGE", tmp_path / "cards.md")
    (tmp_path / "cards.md").write_text(cards_page.page().replace("| all |", "| 1 |"), "utf-8")

    assert cards_page.main(["--check"]) == 1
    assert "python -m tools.cards_page" in capsys.readouterr().out
