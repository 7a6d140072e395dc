"""docs/promises.md names tests that exist."""

import re
from collections import defaultdict

import pytest

from tests.named_tests import ROOT, functions_of

NAMED: defaultdict[str, set[str]] = defaultdict(set)
for file, test in re.findall(
    r"`(tests/[\w/.]+)::(\w+)`", (ROOT / "docs" / "promises.md").read_text("utf-8")
):
    NAMED[file].add(test)


@pytest.mark.parametrize("file", sorted(NAMED))
def test_every_test_that_is_named_exists(file: str) -> None:
    assert NAMED[file] <= functions_of(file)
