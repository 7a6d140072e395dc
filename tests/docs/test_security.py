"""docs/security.md names tests that exist, and its claims about the code as a whole hold."""

import ast
from pathlib import Path

import pytest

from tests.support.named_tests import ROOT, functions_of, named_by

PACKAGES = ("cli", "client", "core", "gateway", "services")
# Functions that make objects or code of bytes.
UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_METHODS = {("torch", "load"), ("yaml", "load"), ("np", "load"), ("os", "system")}

NAMED = named_by("security.md")


@pytest.mark.parametrize("file", sorted(NAMED))
def test_every_test_that_is_named_exists(file: str) -> None:
    assert NAMED[file] <= functions_of(file)


def test_nothing_is_unpickled_or_evaluated() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for line in _unsafe(path)
    ]
    assert not found


def _unsafe(path: Path) -> list[int]:
    lines = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import(names=names):
                is_unsafe = any(each.name.split(".")[0] in UNSAFE_MODULES for each in names)
            case ast.ImportFrom(module=str(module)):
                is_unsafe = module.split(".")[0] in UNSAFE_MODULES
            case ast.Call(func=ast.Name(id=name)):
                is_unsafe = name in UNSAFE_CALLS
            case ast.Call(func=ast.Attribute(value=ast.Name(id=holder), attr=name)):
                is_unsafe = (holder, name) in UNSAFE_METHODS
            case _:
                continue
        if is_unsafe:
            lines.append(node.lineno)
    return lines
