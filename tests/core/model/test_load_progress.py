"""A tier says how much of its weights it has loaded where a stack asks for it, and nowhere else."""

from pathlib import Path

import pytest

from pixtral_cli.stack.process_plan import LOADED_VARIABLE
from pixtral_core.model.load_progress import VARIABLE, LoadProgress


def test_the_file_has_the_whole_per_cent_that_are_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "decoder.loaded"
    monkeypatch.setenv(VARIABLE, str(path))
    progress = LoadProgress(3000)
    seen = []
    for count in (0, 20, 980, 1999, 1, 500):
        progress.add(count)
        seen.append(path.read_text())
    assert seen == ["0\n", "0\n", "33\n", "99\n", "100\n", "100\n"]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_nothing_is_written_unless_a_stack_asks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    LoadProgress(1).add(1)
    assert not [*tmp_path.iterdir()]


def test_a_tier_loads_even_where_the_file_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "no such folder" / "decoder.loaded"))
    LoadProgress(1).add(1)


def test_the_stack_and_the_tiers_have_one_name_for_it() -> None:
    """The command line imports no tier, so that each has its own constant."""
    assert LOADED_VARIABLE == VARIABLE
