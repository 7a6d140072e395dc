"""A command takes a repository's id for a directory."""

from pathlib import Path
from typing import Any

import pytest

from pixtral_cli import main, up, up_options
from pixtral_cli.hub import model_argument, pull
from pixtral_cli.hub.failures import PullError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The cache's snapshot under `there`, and the models that were looked for and fetched."""
    found: dict[str, Any] = {"there": None, "cached": [], "pulled": []}

    def cached(model: str, revision: str | None) -> Path | None:
        found["cached"].append((model, revision))
        there: Path | None = found["there"]
        return there

    def pull(model: str, revision: str | None) -> Path:
        found["pulled"].append((model, revision))
        return Path("/pulled")

    monkeypatch.setattr(model_argument, "cached", cached)
    monkeypatch.setattr(model_argument, "pull", pull)
    return found


def test_a_path_that_exists_wins(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_argument.model_directory(Path("made/model")) == Path("made/model")
    assert asked["cached"] == asked["pulled"] == []


@pytest.mark.parametrize("path", ["/made/model", "model", "../model", "a/b/c", "~/model", "a/.b"])
def test_what_cannot_be_an_id_stays_a_path(path: str, asked: dict[str, Any]) -> None:
    assert model_argument.model_directory(Path(path)) == Path(path)
    assert asked["cached"] == asked["pulled"] == []


def test_the_cache_comes_before_the_network(asked: dict[str, Any]) -> None:
    assert model_argument.model_directory(Path("made/model"), "v2") == Path("/pulled")
    asked["there"] = Path("/cache/snapshots/1")
    assert model_argument.model_directory(Path("made/model"), "v2") == Path("/cache/snapshots/1")
    assert asked["cached"] == [("made/model", "v2")] * 2
    assert asked["pulled"] == [("made/model", "v2")]


def test_a_wrong_path_is_named_beside_the_hubs_failure(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Path:
        raise PullError("no repository")

    monkeypatch.setattr(model_argument, "pull", fail)
    with pytest.raises(PullError, match="no directory models/pixtrl here; and no repository"):
        model_argument.model_directory(Path("models/pixtrl"))


def test_the_tiers_get_the_directory(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def stack(model_dir: Path, **_: Any) -> Any:
        given.append(model_dir)
        raise KeyboardInterrupt

    monkeypatch.setattr(up, "pixtral_stack", stack)
    monkeypatch.setattr(up, "check_ports", lambda addresses: None)
    monkeypatch.setattr(up_options, "gpus_here", lambda: [])
    assert main.main(["up", "made/model", "--revision", "v2"]) == 130
    assert given == [Path("/pulled")]
    assert asked["pulled"] == [("made/model", "v2")]


def test_a_revision_of_a_directory_is_a_wrong_argument(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(up, "check_ports", lambda addresses: None)
    assert main.main(["up", str(tmp_path), "--revision", "v2"]) == 2
    assert "--revision is for a repository's id" in capsys.readouterr().err


def test_doctor_fetches_nothing(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["doctor", "--model-dir", "made/model", "--revision", "v2"]) == 1
    assert "pixtral-serve pull made/model --revision v2" in capsys.readouterr().err
    assert asked["pulled"] == []


def test_without_the_library_its_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pull, "find_spec", lambda _: None)
    install = "needs the package huggingface_hub: pip install 'pixtral-serve[cli]'"
    assert main.main(["pull", "made/model"]) == 1
    assert install in capsys.readouterr().err
    assert main.main(["doctor", "--model-dir", "made/model"]) == 1
    said = capsys.readouterr().err
    assert install in said
    assert "no directory made/model here" in said
