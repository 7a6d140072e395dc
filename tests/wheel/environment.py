"""The wheel, and environments that hold nothing but it and the packages of one lock."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from tools.install import torch

ROOT = Path(__file__).resolve().parents[2]


# What an environment is for, and the lock that it is made from. No environment is made for the
# decoder: vLLM is too large to install for each run.
LOCKS = {"encoder": "encoder", "gateway": "gateway", "cli": "cli", "base": "client"}


SECONDS_TO_INSTALL = 600


# Environments stay here from run to run, as the largest takes a gigabyte.
KEPT = ROOT / ".cache" / "wheel"


PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment with the wheel and the packages of one extra, or of none (`base`)."""

    extra: str
    folder: Path

    def run(self, *command: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
        """Runs a command of the environment, such as `python`, in a folder."""
        binary = self.folder / "bin" / command[0]
        return run([str(binary), *command[1:]], cwd)

    def python(self, code: str, *, cwd: Path) -> str:
        """Runs code, which must succeed. Returns what it prints."""
        done = self.run("python", "-c", code, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout


def run(command: Sequence[str], cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    ours = ("PIXTRAL_", "PYTHON")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        command,
        cwd=cwd,
        env=inherited | variables,
        capture_output=True,
        text=True,
        timeout=SECONDS_TO_INSTALL,
    )


def run_pip(*arguments: str, python: Path | None = None) -> None:
    target = [] if python is None else ["--python", str(python)]
    done = run([*PIP, *target, *arguments], ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def copy_build_context(to: Path) -> None:
    """Copies those files of the repository that .dockerignore does not hold back."""
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    sent = [line[1:] for line in rules if line.startswith("!")]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        is_sent = any(fnmatch(name, rule + "*" * rule.endswith("/")) for rule in sent)
        if is_sent and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def install(made: Environment, wheel: Path, lock: str) -> None:
    """Makes an environment. One that a run before made from the same lock gets the new wheel."""
    python = made.folder / "bin" / "python"
    options = ["--quiet", "--no-compile", "--only-binary", ":all:"]
    locked = ["--no-deps", "--require-hashes", "--requirement", f"requirements/{lock}.txt"]
    build_of_torch = torch()[1] if lock == "encoder" else []
    contents = "\n".join(
        [sys.version, *build_of_torch, (ROOT / "requirements" / f"{lock}.txt").read_text()]
    )
    note = made.folder / "made-from"
    if not (note.is_file() and note.read_text() == contents):
        shutil.rmtree(made.folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", made.folder], check=True)
        run_pip("install", *options, *locked, python=python)
        if build_of_torch:
            run_pip("install", *options, *build_of_torch, python=python)
        note.write_text(contents)
    ours = ["--no-deps", "--no-index", "--force-reinstall", str(wheel)]
    run_pip("install", *options, *ours, python=python)
