"""Builds the three images and runs every container of the overlays and of compose until healthy.

    python -m tools.images_check [--only NAME ...] [--python-image NAME] ...

Needs root, and Debian's packages of PROGRAMS. Where no argument names a base image, another stands
in for it: Debian's own Python and Redis, and vLLM for CPUs on the same Debian. The built images
stay in .cache/images for the next run. The containers run in namespaces of their own, and end with
the command.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time

from tools.deploy.manifests import ROOT
from tools.images_check.images import Bases, build_all, builder
from tools.images_check.wheels import fetch

PROGRAMS = {
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "openssl": "openssl",
    "runc": "runc",
    "tini-static": "tini",
    "unshare": "util-linux",
}
CACHE = ROOT / ".cache" / "images"
# Pods meet on a bridge that no other program sees; processes and mounts are gone at the end.
APART = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")


def main() -> int:
    from tools.images_check.checks import CHECKS

    parser = argparse.ArgumentParser(
        prog="python -m tools.images_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=CHECKS, metavar="NAME", default=[*CHECKS])
    parser.add_argument("--build-only", action="store_true")
    for name in ("python", "vllm", "redis"):
        parser.add_argument(f"--{name}-image", help="a base image in place of the stand-in")
    options = parser.parse_args()
    require_programs()
    bases = Bases(options.python_image, options.vllm_image, options.redis_image)
    CACHE.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    print("fetching the wheels that the images install", flush=True)
    fetch(ROOT, CACHE / "wheels")
    with builder(CACHE) as build:
        images = build_all(build, ROOT, CACHE, bases)
        print(build("images", "--format", "{{.Name}}:{{.Tag}} {{.Size}}"))
    print(f"built in {time.monotonic() - started:.0f} s", flush=True)
    if options.build_only:
        return 0
    command = [*APART, sys.executable, "-m", "tools.images_check.checks", json.dumps(images)]
    return subprocess.run([*command, *options.only], cwd=ROOT, check=False).returncode


def require_programs() -> None:
    """Ends the command with one line where it cannot work."""
    if missing := sorted(package for name, package in PROGRAMS.items() if not shutil.which(name)):
        sys.exit(f"this target needs Debian's packages: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        sys.exit("this target makes namespaces, and needs root: run it as root, or with sudo")


if __name__ == "__main__":
    sys.exit(main())
