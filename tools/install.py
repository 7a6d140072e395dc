"""Installs the lock, torch and the project into the environment that runs it.

pip chooses the build of torch, which on PyPI is the one for CUDA. With TORCH=cpu in the
environment it installs the CPU build, from PyTorch's own index or from TORCH_INDEX_URL. It shows
each step, its time and the megabytes fetched; pip's own output appears only if pip fails.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "dev.txt"
TORCH = ROOT / "requirements" / "torch.txt"
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--quiet"]
IS_TERMINAL = sys.stdout.isatty()
SECONDS_BETWEEN = 1 if IS_TERMINAL else 30


def main() -> None:
    packages = sum("==" in line for line in LOCK.read_text(encoding="utf-8").splitlines())
    locked = ["--no-deps", "--require-hashes", "--requirement", str(LOCK)]
    step(1, f"vLLM and {packages} packages (650 MB to fetch)", locked)
    step(2, *torch())
    step(3, "pixtral-serve", ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)])


def torch() -> tuple[str, list[str]]:
    """The label of the step, and pip's arguments."""
    pin = TORCH.read_text(encoding="utf-8").strip()
    match os.environ.get("TORCH"):
        case None | "":
            return f"{pin} (2.7 GB to fetch as a CUDA build; TORCH=cpu: 200 MB)", [pin]
        case "cpu":
            index = os.environ.get("TORCH_INDEX_URL") or CPU_INDEX
            # If the index has only CUDA builds, this version does not exist there and pip fails.
            return f"{pin}+cpu (200 MB to fetch)", ["--index-url", index, f"{pin}+cpu"]
        case other:
            sys.exit(f"TORCH={other} is not a build of torch: set TORCH=cpu, or leave TORCH unset")


def step(number: int, what: str, arguments: list[str]) -> None:
    print(f"installing [{number}/3] {what}", flush=True)
    started = time.monotonic()
    shown = 0.0
    # pip's own bar needs a terminal, and covers only the download of one package.
    with (
        tempfile.TemporaryDirectory() as scratch,
        subprocess.Popen(
            [*PIP, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"TMPDIR": scratch},
        ) as pip,
    ):
        output = ""
        while pip.poll() is None:
            try:
                output, _ = pip.communicate(timeout=1)
            except subprocess.TimeoutExpired:
                seconds = time.monotonic() - started
                if seconds - shown >= SECONDS_BETWEEN:
                    shown = seconds
                    show(f"{seconds:.0f} s, {progress(Path(scratch))}")
    outcome = "done" if pip.returncode == 0 else "failed"
    show(f"{outcome} in {time.monotonic() - started:.0f} s\n")
    if pip.returncode != 0:
        sys.exit(output)


def show(text: str) -> None:
    """Shows a line; on a terminal it replaces the last one."""
    print(f"\r\x1b[K    {text}" if IS_TERMINAL else f"    {text.rstrip()}\n", end="", flush=True)


def progress(scratch: Path) -> str:
    """The progress of a pip that works in `scratch`: it fetches everything before it installs."""
    size = 0
    # pip moves files and removes folders meanwhile. os.walk ignores a folder that is gone.
    for folder, _, names in os.walk(scratch):
        if Path(folder).name.startswith("pip-unpack-"):
            for name in names:
                with suppress(OSError):
                    size += Path(folder, name).stat().st_size
    installed = sum(1 for _ in SITE_PACKAGES.glob("*.dist-info"))
    return f"{size / 1e6:,.0f} MB fetched, {installed} packages installed"


if __name__ == "__main__":
    main()
