"""docs/promises.md names tests that exist."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED: defaultdict[str, set[str]] = defaultdict(set)
for file, test in re.findall(
    r"`(tests/[\w/.]+)::(\w+)`", (ROOT / "docs" / "promises.md").read_text("utf-8")
):
    NAMED[file].add(test)


@pytest.mark.parametrize("file", sorted(NAMED))
def test_every_test_that_is_named_exists(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    functions = ast.FunctionDef, ast.AsyncFunctionDef
    assert NAMED[file] <= {node.name for node in tree.body if isinstance(node, functions)}
