"""Checks that no file of the tests imports a test module, a conftest, or `bench`.

Shared code belongs in `tests/support`, or beside the tests in a module without tests. Only the
tests of `bench` may import `bench`.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def faults(tests: Path) -> Iterator[str]:
    """Each forbidden import below this folder, with its file and line."""
    for file in sorted(tests.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            is_of_bench = file.is_relative_to(tests / "bench")
            problems = (_problem(name, is_of_bench=is_of_bench) for name in _modules(node))
            if problem := next(filter(None, problems), None):
                where = f"{file.relative_to(tests.parent)}:{getattr(node, 'lineno', 0)}"
                yield f"{where}: imports {problem}: move shared code to tests/support"


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def _problem(module: str, *, is_of_bench: bool) -> str | None:
    package, _, rest = module.partition(".")
    if package == "bench" and not is_of_bench:
        return f"the benchmark {module}"
    if package == "tests" and any(part.startswith("test_") for part in rest.split(".")):
        return f"the test {module}"
    if package == "tests" and "conftest" in rest.split("."):
        return f"the conftest {module}"
    return None


def main() -> None:
    found = list(faults(ROOT / "tests"))
    print("\n".join(found), end="\n" if found else "")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
