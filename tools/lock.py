"""Writes the locks under requirements/ with uv, one for each kind of installation.

    python tools/lock.py                           # after a change of pyproject.toml
    python tools/lock.py --upgrade-package redis   # any flags of `uv pip compile`

A version changes only if pyproject.toml or a flag asks for it. [tool.uv] in pyproject.toml lists
the packages that no lock includes. torch is not in the locks either: each installation chooses one
of its two builds, and requirements/torch.txt pins the version.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = [
    *(sys.executable, "-m", "uv", "pip", "compile"),
    *("--universal", "--python-version", "3.11", "--fork-strategy", "fewest"),
    *("--generate-hashes", "--annotation-style", "line", "--quiet"),
    *("--custom-compile-command", "python tools/lock.py"),
    *("--overrides", "requirements/torch.txt", "--no-emit-package", "torch"),
]
# The images have the same versions as the tests.
AS_TESTED = ("pyproject.toml", "--constraints", "requirements/dev.txt")
LOCKS: dict[str, tuple[str, ...]] = {
    "dev": (
        "pyproject.toml",
        *(f"--extra={extra}" for extra in ("cli", "gateway", "encoder", "decoder-cpu")),
        *("--group=training", "--group=dev"),
    ),
    # The SDK alone; below it, the command line.
    "client": AS_TESTED,
    "cli": (*AS_TESTED, "--extra=cli"),
    "gateway": (*AS_TESTED, "--extra=gateway"),
    "encoder": (*AS_TESTED, "--extra=encoder"),
    # Packages to add to vLLM's own image. That image has vLLM, torch and all of OpenTelemetry,
    # whose packages must share one release.
    "decoder": (*AS_TESTED, "--extra=core", "--excludes", "/dev/stdin"),
    "build": ("--group=build",),
    "deploy-tools": ("--group=deploy-tools",),
    "clients": ("--group=clients",),
    "clients-llama-index": ("--group=clients-llama-index",),
    "docs": ("--group=docs",),
}
IN_VLLM_IMAGE = "opentelemetry-exporter-otlp-proto-grpc\nopentelemetry-sdk\n"


def main() -> None:
    for name, flags in LOCKS.items():
        path = f"requirements/{name}.txt"
        command = [*UV, *flags, *sys.argv[1:], "--output-file", path]
        subprocess.run(
            command, cwd=ROOT, input=IN_VLLM_IMAGE, text=True, stdout=subprocess.DEVNULL, check=True
        )
        print(path, flush=True)


if __name__ == "__main__":
    main()
