"""The progress that an installation shows, while pip works in the same folders."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.install import progress


def unpack(scratch: Path, name: str, size: int) -> Path:
    folder = scratch / f"pip-unpack-{name}"
    folder.mkdir()
    (folder / "a.whl").write_bytes(bytes(size))
    return folder


def test_the_progress_counts_what_pip_has_fetched(tmp_path: Path) -> None:
    unpack(tmp_path, "one", 2_000_000)
    unpack(tmp_path, "two", 1_000_000)
    (tmp_path / "pip-install-x").mkdir()
    (tmp_path / "pip-install-x" / "built").write_bytes(bytes(5_000_000))

    assert progress(tmp_path).startswith("3 MB fetched, ")


def test_a_folder_that_pip_removes_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = unpack(tmp_path, "removed", 2_000_000)
    unpack(tmp_path, "stays", 1_000_000)
    scandir = os.scandir

    def remove_then_scan(path: Any = ".") -> Iterator[os.DirEntry[str]]:
        if path == str(removed):
            shutil.rmtree(removed)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", remove_then_scan)

    assert progress(tmp_path).startswith("1 MB fetched, ")
    assert not removed.exists()
