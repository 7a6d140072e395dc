"""docs/models.md names a test in each row of what is served, or says that there is none."""

import pytest

from tests.support.named_tests import ROOT, functions_of, named_by

NAMED = named_by("models.md")
HEADING = "## What is served\n"


@pytest.mark.parametrize("file", sorted(NAMED))
def test_every_test_that_is_named_exists(file: str) -> None:
    assert NAMED[file] <= functions_of(file)


def test_each_model_names_its_test_or_says_that_there_is_none() -> None:
    page = (ROOT / "docs" / "models.md").read_text("utf-8")
    section = page.split(HEADING)[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 7
    for row in rows:
        tested_by = row.split(" | ")[3]
        assert "::test_" in tested_by or tested_by == "not here", row
