"""Runs the shell blocks of a page in a copy of the files that they need, with stand-ins on PATH."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.cluster.state import State
from tools.deploy.manifests import ROOT, builder

STAND_INS = (
    "curl",
    "docker",
    "helm",
    "kind",
    "kubectl",
    "nvidia-cuda-mps-control",
    "pixtral-serve",
)
# The real programs that a page may run. PATH has no others.
REAL = (
    *("base64", "bash", "cat", "grep", "make", "openssl", "sed", "sh", "tee", "tr"),
    *("awk", "env", "test", "uname"),
)
FILES = (
    "Makefile",
    "gateway/Dockerfile",
    "services/encoder/Dockerfile",
    "services/decoder/Dockerfile",
    "docs/pictures/cat.jpg",
    "models/kustomization.yaml",
    "models/random_checkpoint.py",
)
PACKAGES = (".", "client", "cli", "core", "gateway", "protos")
# A stand-in is a module of the tests, and sees the real PATH.
STAND_IN = """\
#!{python}
import os, sys
os.environ["PATH"] = os.environ["STAND_IN_PATH"]
os.environ["PYTHONPATH"] = {folders!r}
os.execv({python!r}, [{python!r}, "-P", "-m", "tests.support.cluster", {name!r}, *sys.argv[1:]])
"""
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
SECONDS = 300


def blocks_of(page: str, *headings: str) -> list[str]:
    """The shell blocks below these headings, in order. Raises ValueError if a heading has none."""
    found: list[str] = []
    for heading in headings:
        parts = re.split(r"^(#+ .*)$", page, flags=re.MULTILINE)
        below = dict(zip(parts[1::2], parts[2::2], strict=True))
        blocks = BLOCK.findall(below.get(heading, ""))
        if not blocks:
            raise ValueError(f"{heading!r} has no block")
        found += blocks
    return found


@dataclass(frozen=True, slots=True)
class Done:
    """A session that has ended: its faults, and the objects that it made."""

    faults: list[str]
    state: State


@dataclass(frozen=True, slots=True)
class Desk:
    """A reader's machine: a clone, an image file, and the programs."""

    tree: Path
    programs: Path
    state: Path
    cache: Path

    def run(self, blocks: Sequence[str], variables: Mapping[str, str]) -> Done:
        """Runs the blocks in one shell, and waits for its background programs.

        The shell stops at the first command that fails and at an unset variable.
        """
        script = "\n".join([*blocks, "wait"])
        environment = {
            **variables,
            "HOME": str(self.state.parent),
            "LANG": "C.UTF-8",
            "PATH": str(self.programs),
            "STAND_IN_CACHE": str(self.cache),
            "STAND_IN_KUSTOMIZE": json.dumps(kustomize()),
            "STAND_IN_PATH": os.environ["PATH"],
            "STAND_IN_STATE": str(self.state),
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        state = State(self.state)
        failed = [] if done.returncode == 0 else [done.stderr.strip() or "the shell fails"]
        return Done([*state.faults(), *failed], state)


def kustomize() -> list[str]:
    """The real program that builds, by its full path, because PATH has a stand-in."""
    program, *arguments = builder()
    return [shutil.which(program) or program, *arguments]


def set_up(directory: Path, cache: Path) -> Desk:
    """A desk in an empty directory. `cache` keeps builds of manifests, by content."""
    tree, programs = directory / "clone", directory / "programs"
    shutil.copytree(ROOT / "deploy", tree / "deploy", ignore=shutil.ignore_patterns("schemas"))
    for name in FILES:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    shutil.copy(ROOT / "docs/pictures/cat.jpg", tree / "cat.jpg")
    programs.mkdir()
    for name in REAL:
        program = shutil.which(name)
        if program is not None:
            (programs / name).symlink_to(program)
    folders = ":".join(str(ROOT / name) for name in PACKAGES)
    for name in STAND_INS:
        script = programs / name
        text = STAND_IN.format(python=sys.executable, folders=folders, name=name)
        script.write_text(text)
        script.chmod(0o755)
    cache.mkdir(exist_ok=True)
    return Desk(tree, programs, directory / "state", cache)
