"""The tests that a page of the documentation can name."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def functions_of(file: str) -> set[str]:
    """Names of the functions of a file, by its path from the root."""
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    functions = ast.FunctionDef, ast.AsyncFunctionDef
    return {node.name for node in tree.body if isinstance(node, functions)}
