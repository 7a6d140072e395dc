"""Answers of random tokens are what their structures ask for, over all of Unicode.

`make structures` makes ten thousand of them.
"""

import warnings
from pathlib import Path

import pytest

from models.random_checkpoint import RandomSpec, write_random_checkpoint
from tests.support.tekken_version import set_version

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from pixtral_decoder.grammar import grammar_check
    from tests.decoder.structures import run

# vLLM's own.
pytestmark = pytest.mark.filterwarnings("ignore:max_rollback_tokens:DeprecationWarning")


@pytest.fixture(scope="module")
def named_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of version 11."""
    directory = tmp_path_factory.mktemp("structures") / "v11"
    spec = RandomSpec(dim=8, n_layers=1, n_heads=1, n_kv_heads=1, vision_layers=1)
    set_version(write_random_checkpoint(directory, spec), "v11")
    return directory


def test_every_answer_is_what_its_structure_asks_for(checkpoint: Path, named_dir: Path) -> None:
    found = run(checkpoint, named_dir, answers=200, seed=7, each=4)
    assert found.wrong == []
    assert len(found.answers) >= 8
    assert found.refused <= found.structures / 10
    assert found.unfinished <= 20


def test_answers_to_another_schema_are_found(
    checkpoint: Path, named_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_check, "mended", lambda _: {"const": "another"})
    assert run(checkpoint, named_dir, answers=20, seed=7, each=1).wrong
