"""Writes the full pinned locks under requirements/, one an installation.

Run where pip's `torch` is the CPU build:

    python tools/lock.py            # all
    python tools/lock.py dev client # some
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"

# extras, further constraints, and what is left out of the lock although something asks for it
LOCKS: dict[str, tuple[list[str], list[str], tuple[str, ...]]] = {
    "client": (["client"], [], ()),
    "gateway": (["gateway"], [], ()),
    "encoder": (["encoder"], [TORCH], ("nvidia-", "cuda-", "triton")),
    # What goes onto vLLM's own image, which holds vLLM, torch and all of OpenTelemetry, whose
    # packages must be of one release.
    "decoder": (["serving"], [], ("opentelemetry-",)),
    # The CPU build of vLLM asks for CUDA builds of torchvision, torchaudio and torchcodec, which
    # break its import beside a CPU torch and are not needed.
    "dev": (
        ["gateway", "encoder", "decoder-cpu", "client", "training", "dev"],
        [TORCH],
        ("nvidia-", "cuda-", "triton", "torchvision", "torchaudio", "torchcodec"),
    ),
}


def requirements(extras: list[str]) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional: dict[str, list[str]] = project["optional-dependencies"]
    found = list(project["dependencies"])
    for extra in extras:
        for line in optional[extra]:
            if line.startswith("pixtral-serve["):
                found += requirements([line.partition("[")[2].rstrip("]")])
            else:
                found.append(line)
    return found


def resolve(wanted: list[str]) -> list[tuple[str, str]]:
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    report = subprocess.run(
        [*pip, "--quiet", "--report", "-", *wanted], check=True, stdout=subprocess.PIPE
    )
    return sorted(
        (
            item["metadata"]["name"].lower().replace("_", "-").replace(".", "-"),
            # A local version such as +cpu names a build and not a release.
            item["metadata"]["version"].partition("+")[0],
        )
        for item in json.loads(report.stdout)["install"]
    )


def main() -> None:
    for name in sys.argv[1:] or LOCKS:
        extras, constraints, left_out = LOCKS[name]
        lines = [
            f"{package}=={version}\n"
            for package, version in resolve(requirements(extras) + constraints)
            if not package.startswith(left_out or "\0")
        ]
        path = ROOT / "requirements" / f"{name}.txt"
        path.write_text(
            "# Made by tools/lock.py; install with --no-deps.\n" + "".join(lines), encoding="utf-8"
        )
        print(f"{path.relative_to(ROOT)}: {len(lines)} packages")


if __name__ == "__main__":
    main()
