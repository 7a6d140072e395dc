"""Finds the tests that a page of the documentation names."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]


def functions_of(file: str) -> set[str]:
    """Names of the functions of a file; its path is relative to the root."""
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    functions = ast.FunctionDef, ast.AsyncFunctionDef
    return {node.name for node in tree.body if isinstance(node, functions)}


def named_by(page: str) -> dict[str, set[str]]:
    """The tests that a page under docs/ names, by file."""
    named: defaultdict[str, set[str]] = defaultdict(set)
    for file, test in re.findall(
        r"`(tests/[\w/.]+)::(\w+)`", (ROOT / "docs" / page).read_text("utf-8")
    ):
        named[file].add(test)
    return named
