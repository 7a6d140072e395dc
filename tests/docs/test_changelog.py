"""CHANGELOG.md has the form of Keep a Changelog, and the version that is built."""

import re
import tomllib
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CHANGELOG.md").read_text("utf-8")
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
RELEASES = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\S+)$", TEXT, re.MULTILINE)


def test_unreleased_changes_come_first_and_then_releases_with_dates() -> None:
    headings = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    assert headings == ["[Unreleased]", *(f"[{version}] - {day}" for version, day in RELEASES)]


def test_releases_are_ordered_newest_first() -> None:
    ordered = [
        (tuple(map(int, version.split("."))), date.fromisoformat(day)) for version, day in RELEASES
    ]
    assert ordered == sorted(ordered, reverse=True)


def test_changes_are_of_the_six_kinds() -> None:
    assert set(re.findall(r"^### (.*)$", TEXT, re.MULTILINE)) <= KINDS


def test_the_version_that_is_built_is_the_newest_release() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert RELEASES[0][0] == project["version"]
