"""Makes the environment that it runs in: torch, the lock, and the project itself.

Shows what it does and for how long; pip's own output is shown where it fails.
"""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "dev.txt"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--quiet"]


def main() -> None:
    pins = [line for line in LOCK.read_text(encoding="utf-8").splitlines() if "==" in line]
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    # torch with what it needs, CPU build or CUDA's; all else from the lock alone, because vLLM
    # for CPUs asks for CUDA builds that break it.
    step(1, f"{torch}, about 200 MB as a CPU build", ["-c", str(LOCK), torch])
    step(2, f"vLLM and {len(pins)} packages, about 500 MB", ["--no-deps", "-r", str(LOCK)])
    step(3, "pixtral-serve", ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)])


def step(number: int, what: str, arguments: list[str]) -> None:
    started = time.monotonic()
    label = f"installing [{number}/3] {what}"
    print(label, end=" " if sys.stdout.isatty() else "\n", flush=True)
    with subprocess.Popen(
        [*PIP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as pip:
        output = ""
        while pip.poll() is None:
            try:
                output, _ = pip.communicate(timeout=1)
            except subprocess.TimeoutExpired:
                if sys.stdout.isatty():
                    print(f"\r{label}: {time.monotonic() - started:.0f} s", end="", flush=True)
    print(f"\r{label}: done in {time.monotonic() - started:.0f} s", flush=True)
    if pip.returncode != 0:
        sys.exit(output)


if __name__ == "__main__":
    main()
