"""Writes a page that a tool makes; with --check, tells whether it is up to date."""

from collections.abc import Sequence
from pathlib import Path


def write_or_check(page: Path, text: str, tool: str, arguments: Sequence[str]) -> int:
    """The exit code of the module `tool`, which makes `text`: 1 where the page has another."""
    if "--check" not in arguments:
        page.write_text(text, "utf-8")
        return 0
    if not page.is_file() or page.read_text("utf-8") != text:
        print(f"docs/{page.name} is not up to date: run python -m {tool}")
        return 1
    return 0
