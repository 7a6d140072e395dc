"""Writes the map at the end of docs/architecture.md from the first line of each file.

    python -m tools.architecture_page [--check]

With --check it fails if the page is out of date.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "## The house\n"
INTRODUCTION = """
`python -m tools.architecture_page` writes this map from the first line of each module.
"""
PACKAGES = (
    ("gateway/pixtral_gateway", "The gateway."),
    ("services/encoder/pixtral_encoder", "The encoder."),
    ("services/decoder/pixtral_decoder", "The decoder."),
    ("core/pixtral_core", "The parts that the tiers share."),
    ("client/pixtral_client", "The Python SDK."),
    ("cli/pixtral_cli", "The command line."),
)
FOLDERS = {
    "protos": "The public API, `pixtral.v1`, and the tiers' own, with the generated stubs.",
    "models": "The small checkpoints for the demo, tests and benchmarks.",
    "training": "The training of the small checkpoint `models/pixtral-mini`.",
    "bench": "Measurements; the first lines of each module say what it measures.",
    "deploy": "Compose, Kubernetes, a Helm chart, Prometheus and Grafana.",
    "docs": "This documentation.",
    "requirements": "Locks, one for each kind of installation.",
    "tests": "Tests, in the tree of the packages. `tests/support` has their shared code.",
    "tools": "Programs that `make` runs.",
}


def page(head: str) -> str:
    """The page: `head` up to the map, and a new map."""
    return head.partition(BEGIN)[0] + BEGIN + INTRODUCTION + "\n" + "\n".join(lines()) + "\n"


def lines() -> Iterator[str]:
    for package, title in PACKAGES:
        yield f"### `{package}`\n\n{title}\n\n```"
        files = [file for file in tracked(package) if file.suffix == ".py"]
        width = max(len(name_in(file, package)) for file in files)
        for folder, group in groupby(files, key=lambda file: file.parent):
            if folder != ROOT / package:
                yield f"{folder.relative_to(ROOT / package)}/"
            for file in group:
                if file.name != "__init__.py":
                    yield f"{name_in(file, package):{width}}  {first_line(file)}"
        yield "```\n"
    yield "### The other folders\n"
    yield from (f"- `{folder}/`: {text}" for folder, text in FOLDERS.items())


def name_in(file: Path, package: str) -> str:
    depth = len(file.relative_to(ROOT / package).parts) - 1
    return "  " * bool(depth) + file.name


def first_line(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    line = docstring.partition("\n\n")[0].replace("\n", " ")
    if not line:
        sys.exit(f"{file.relative_to(ROOT)} has no docstring: add a first line")
    return line


def tracked(folder: str) -> list[Path]:
    """Files that git tracks or would add; a folder's files come before its subfolders."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = {ROOT / line for line in found.splitlines() if (ROOT / line).is_file()}
    return sorted(files, key=lambda file: (file.parent.parts, file.name))


def main() -> None:
    head = PAGE.read_text("utf-8")
    made = page(head)
    if sys.argv[1:] == ["--check"]:
        if made != head:
            sys.exit(f"{PAGE.name} is out of date: run python -m tools.architecture_page")
        return
    PAGE.write_text(made, "utf-8")


if __name__ == "__main__":
    main()
