"""docs/promises.md names tests that exist."""

import pytest

from tests.support.named_tests import functions_of, named_by

NAMED = named_by("promises.md")


@pytest.mark.parametrize("file", sorted(NAMED))
def test_every_test_that_is_named_exists(file: str) -> None:
    assert NAMED[file] <= functions_of(file)
