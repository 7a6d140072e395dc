"""Checks that each target of `make help` installs what it uses.

    python -m tools.check_targets [TARGET ...]

It copies the tree without an environment, node_modules and caches. In the copy it lists the
commands of each target with `make --dry-run`, and finds

- a command that uses an environment or a cache that no earlier command makes;
- a test or a module that reads node_modules in a target that does not install them;
- a target that runs npm or node without a note in its line of the help.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# A folder that git ignores, as a command names it.
MADE = re.compile(r"(?<![\w.-])(\.venv|node_modules|\.cache/[\w-]+)(?=[/\s\"';)]|$)")
MAKERS = (
    re.compile(r"-m venv (?P<folder>[\w./-]+)"),
    re.compile(r"(?P<folder>\.venv)/bin/python tools/install\.py"),
    re.compile(r"npm install(?P<folder>)"),
    re.compile(r"-m models\.random_checkpoint (?P<folder>[\w./-]+)"),
    re.compile(r"-m tools\.deploy\.check (?P<folder>[\w./-]+)"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", help="targets to check; all of `make help` if none")
    wanted = parser.parse_args().targets
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        copy_tree(tree)
        helps = help_lines(tree)
        faults = [
            f"make {target}: {fault}"
            for target in wanted or helps
            for fault in faults_of(target, helps[target], tree)
        ]
    if faults:
        sys.exit("\n".join(faults))
    print(f"{len(wanted or helps)} targets install what they use")


def copy_tree(to: Path) -> None:
    """Copies the files that git would commit."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source = ROOT / name
        if source.is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, to / name)


def help_lines(tree: Path) -> Mapping[str, str]:
    """The line of `make help` for each target."""
    shown = make(tree, "help").stdout
    return {line.split()[1]: line for line in shown.splitlines() if line.startswith("make ")}


def faults_of(target: str, help_line: str, tree: Path) -> Iterator[str]:
    planned = make(tree, "--dry-run", target)
    if planned.returncode != 0:
        yield f"make cannot plan it: {planned.stderr.strip()}"
        return
    commands = planned.stdout.replace("\\\n", " ").splitlines()
    made: set[str] = set()
    for command in filter(is_work, commands):
        for folder in sorted(set(MADE.findall(command)) - made - makes(command)):
            yield f"uses {folder}, which no earlier command makes: {command.strip()}"
        made |= makes(command)
        for file in sources(command, tree):
            if "node_modules" in file.read_text("utf-8") and "node_modules" not in made:
                yield f"{file.relative_to(tree)} reads node_modules, which no earlier command makes"
    uses_node = any(re.search(r"(^|[\s(@|])(npm|node) ", command) for command in commands)
    if uses_node and "needs npm" not in help_line:
        yield "runs npm or node, but its line of `make help` does not say `needs npm`"


def is_work(command: str) -> bool:
    """Whether a command does more than print, remove, or create what is missing."""
    return not re.match(r"(echo|rm|test -x|mkdir) ", command) or "-m venv" in command


def makes(command: str) -> set[str]:
    found = (maker.search(command) for maker in MAKERS)
    return {match["folder"] or "node_modules" for match in found if match}


def sources(command: str, tree: Path) -> list[Path]:
    """The files that a command runs; for pytest, all files that may have the selected tests."""
    arguments = of_python(command)
    if arguments[:1] != ["-m"]:
        return []
    if arguments[1] != "pytest":
        module = tree / arguments[1].replace(".", "/")
        return [f for f in (module.with_suffix(".py"), module / "__main__.py") if f.is_file()]
    ignored = [tree / a.partition("=")[2] for a in arguments if a.startswith("--ignore=")]
    folders = [a for a in arguments[2:] if a.startswith("tests")] or ["tests"]
    found = [file for folder in folders for file in (tree / folder).rglob("*.py")]
    is_npm = "npm" in arguments
    return [
        file
        for file in found
        if not any(file.is_relative_to(folder) for folder in ignored)
        and is_npm == ("pytest.mark.npm" in file.read_text("utf-8"))
    ]


def of_python(command: str) -> list[str]:
    """The arguments that a command passes to the environment's Python; none if it runs none."""
    _, python, rest = command.partition(".venv/bin/python ")
    return shlex.split(rest.split(" && ")[0].split(" || ")[0]) if python else []


def make(tree: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return run(["make", "--no-print-directory", *arguments], tree)


def run(command: Sequence[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "VIRTUAL_ENV")
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


if __name__ == "__main__":
    main()
