"""Prints the path of promtool, or of another program of Debian's package `prometheus`.

It prefers the program on the PATH. If there is none, it unpacks the distribution's package under
.cache, which needs no root.
"""

import shutil
import subprocess
import sys
from pathlib import Path

UNPACKED = Path(__file__).resolve().parent.parent / ".cache" / "prometheus"


def find(program: str) -> str:
    """The path of a program. Raises SystemExit if it is neither found nor downloaded."""
    unpacked = UNPACKED / "usr" / "bin" / program
    if not unpacked.is_file():
        on_path = shutil.which(program)
        if on_path is not None:
            return on_path
        unpack()
    return str(unpacked)


def unpack() -> None:
    apt_get, dpkg_deb = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if apt_get is None or dpkg_deb is None:
        sys.exit("promtool is needed and not on the PATH: install Prometheus, which includes it")
    UNPACKED.mkdir(parents=True, exist_ok=True)
    # Own package lists: the machine's may be absent or stale, and only root can renew them.
    lists = UNPACKED / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    apt = [apt_get, "--quiet", "--quiet", f"-oDir::State::Lists={lists}"]
    try:
        for command in (["update"], ["download", "prometheus"]):
            subprocess.run(
                [*apt, *command], cwd=UNPACKED, check=True, capture_output=True, text=True
            )
    except subprocess.CalledProcessError as error:
        sys.exit(
            "promtool is needed and not on the PATH, and the package `prometheus` could not be "
            f"downloaded: install it\n{error.stderr}"
        )
    shutil.rmtree(lists)
    (package,) = UNPACKED.glob("prometheus_*.deb")
    subprocess.run([dpkg_deb, "--extract", package, UNPACKED], check=True)
    package.unlink()


if __name__ == "__main__":
    print(find(*(sys.argv[1:] or ["promtool"])))
