"""Answers of random tokens are what their structures ask for, over all of Unicode.

`make structures` makes ten thousand of them.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from models.random_checkpoint import write_random_checkpoint
from tests.support.tekken_version import set_version

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from pixtral_decoder.grammar import grammar_check
    from tests.decoder.structures import SMALL, run

# vLLM's own.
pytestmark = pytest.mark.filterwarnings("ignore:max_rollback_tokens:DeprecationWarning")


@pytest.fixture(scope="module")
def named_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of version 11."""
    directory = tmp_path_factory.mktemp("structures") / "v11"
    set_version(write_random_checkpoint(directory, SMALL), "v11")
    return directory


@pytest.fixture(scope="module")
def sentencepiece_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("structures") / "v7"
    return write_random_checkpoint(directory, replace(SMALL, tokenizer="sentencepiece"))


def test_every_answer_is_what_its_structure_asks_for(checkpoint: Path, named_dir: Path) -> None:
    check({"v3": checkpoint, "v11": named_dir})


def test_every_answer_of_sentencepiece_is_too(sentencepiece_dir: Path) -> None:
    check({"v7": sentencepiece_dir})


def check(model_dirs: Mapping[str, Path]) -> None:
    found = run(model_dirs, answers=200, seed=7, each=4)
    assert found.wrong == []
    assert len(found.answers) >= 8
    assert found.refused <= found.structures / 10
    assert found.unfinished <= 20


def test_answers_to_another_schema_are_found(
    checkpoint: Path, named_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_check, "mended", lambda _: {"const": "another"})
    assert run({"v3": checkpoint, "v11": named_dir}, answers=20, seed=7, each=1).wrong
