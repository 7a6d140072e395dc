"""The bounds of memory are those that docs/security.md adds up."""

import re
from collections import Counter

import pytest

from tests.hostile import connections, generation, images, messages
from tests.hostile.attack import ATTACKS
from tests.hostile.stack import BOUNDS_MIB
from tests.support.named_tests import ROOT, named_by

ROW = re.compile(r"^\| (gateway|encoder|decoder) \| [^|]+ \| (\d+) \|$", re.MULTILINE)
SUM = re.compile(r"^\| \*\*(\w+)\*\* \| \| \*\*(\d+)\*\* \|$", re.MULTILINE)


@pytest.fixture
def page() -> str:
    return (ROOT / "docs" / "security.md").read_text("utf-8")


def test_each_tiers_parts_add_up_to_its_bound(page: str) -> None:
    parts = Counter[str]()
    for tier, mib in ROW.findall(page):
        parts[tier] += int(mib)
    assert parts == BOUNDS_MIB
    assert {tier: int(mib) for tier, mib in SUM.findall(page)} == BOUNDS_MIB


def test_every_attack_is_on_the_page() -> None:
    named = set().union(
        *(names for file, names in named_by("security.md").items() if "/hostile/" in file)
    )
    assert {each.name.replace(" ", "_") for each in ATTACKS} == named
    assert all(module.__doc__ for module in (connections, generation, images, messages))
