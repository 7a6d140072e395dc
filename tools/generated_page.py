"""Writes a generated page; with --check, fails if it is out of date."""

from collections.abc import Sequence
from pathlib import Path


def write_or_check(page: Path, text: str, tool: str, arguments: Sequence[str]) -> int:
    """Returns the exit code of the module `tool`: 1 if the page differs from `text` in a check."""
    if "--check" not in arguments:
        page.write_text(text, "utf-8")
        return 0
    if not page.is_file() or page.read_text("utf-8") != text:
        print(f"docs/{page.name} is out of date: run python -m {tool}")
        return 1
    return 0
