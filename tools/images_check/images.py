"""Builds the stand-in bases, and on them the three images, with buildah in a store of its own."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.deploy.images import FOLDERS
from tools.images_check.specification import Image

STAND_INS = Path(__file__).parent / "stand_ins"
SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = ("ca-certificates", "python-is-python3", "python3", "python3-pip", "python3-venv")
LEFT_OUT = ("dev/*", "proc/*", "sys/*", "var/cache/apt/*", "var/lib/apt/lists/*")
PREFIX = "localhost/images-check"


@dataclass(frozen=True, slots=True)
class Bases:
    """Names of base images; None for a stand-in."""

    python: str | None
    vllm: str | None
    redis: str | None


@dataclass(frozen=True, slots=True)
class Builder:
    """buildah, whose images are in `store`. `running` is for what ends with this run."""

    store: Path
    running: Path

    def __call__(self, *arguments: str, cwd: Path | None = None) -> str:
        """The output of a command of buildah. Raises CalledProcessError."""
        where = ["--root", str(self.store), "--runroot", str(self.running)]
        command = ["buildah", *where, "--storage-driver", "overlay", *arguments]
        done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, cwd=cwd)
        return done.stdout.strip()

    def build(
        self,
        file: Path,
        context: Path,
        name: str,
        wheels: Path,
        variables: Mapping[str, str],
        *,
        is_kept: bool = False,
    ) -> str:
        """The whole name of the image that a Dockerfile makes; `is_kept` keeps each step of it for
        the next run, which takes longer where steps are large."""
        tag = f"{PREFIX}/{name}"
        self(
            *("build", "--isolation", "chroot", "--network", "host", "--quiet"),
            f"--layers={str(is_kept).lower()}",
            *("--pull=ifmissing", "--format", "docker", "--file", str(file), "--tag", tag),
            *("--volume", f"{wheels}:/stand-in:ro"),
            *(word for each in variables.items() for word in ("--build-arg", "=".join(each))),
            str(context),
        )
        return tag

    @contextmanager
    def mounted(self, image: str) -> Iterator[Image]:
        """A container's root that is the image's, and its configuration."""
        container = self("from", "--pull-never", image)
        try:
            said: Any = json.loads(self("inspect", "--type", "image", image))
            yield Image(Path(self("mount", container)), said["OCIv1"]["config"])
        finally:
            self("rm", container)


@contextmanager
def builder(cache: Path) -> Iterator[Builder]:
    with tempfile.TemporaryDirectory(prefix="images-check-") as running:
        yield Builder(cache / "storage", Path(running))


def build_all(build: Builder, root: Path, cache: Path, bases: Bases) -> dict[str, str]:
    """The names of the images of the tiers and of Redis."""
    wheels = cache / "wheels"
    python = bases.python or _python(build, cache, wheels)
    redis = bases.redis or _stand_in(build, "redis", wheels, python)
    if bases.redis:
        build("pull", "--quiet", "--policy", "missing", bases.redis)
    vllm = bases.vllm or _stand_in(build, "vllm", wheels, python)
    images = {"redis": redis}
    for tier, folder in FOLDERS.items():
        print(f"building the image of the {tier}", flush=True)
        base = {"VLLM_IMAGE": vllm} if tier == "decoder" else {"PYTHON_IMAGE": python}
        file = root / folder / "Dockerfile"
        images[tier] = build.build(file, root, f"pixtral-{tier}", wheels, base)
    return images


def _python(build: Builder, cache: Path, wheels: Path) -> str:
    archive = debian(cache)
    with tempfile.TemporaryDirectory(dir=cache) as context:
        (Path(context) / "debian.tar").hardlink_to(archive)
        return build.build(
            STAND_INS / "python.Dockerfile", Path(context), "python", wheels, {}, is_kept=True
        )


def _stand_in(build: Builder, name: str, wheels: Path, python: str) -> str:
    print(f"building what stands in for {name}'s image", flush=True)
    file = STAND_INS / f"{name}.Dockerfile"
    with tempfile.TemporaryDirectory(dir=wheels.parent) as context:
        for each in ("vllm.txt", "torch.txt"):
            shutil.copy(wheels / each, context)
        base = {"PYTHON_IMAGE": python}
        return build.build(file, Path(context), name, wheels, base, is_kept=True)


def debian(cache: Path) -> Path:
    """A minimal Debian with Python, as an archive that stays for the next run."""
    archive = cache / "debian.tar"
    if archive.is_file():
        return archive
    print(f"making a minimal Debian {SUITE}: some minutes", flush=True)
    with tempfile.TemporaryDirectory(dir=cache) as made:
        root, include = Path(made) / "debian", f"--include={','.join(PACKAGES)}"
        with (cache / "debootstrap.log").open("w") as log:
            command = ["debootstrap", "--variant=minbase", include, SUITE, str(root), MIRROR]
            subprocess.run(command, check=True, stdout=log)
        unfinished = Path(made) / "debian.tar"
        exclude = [f"--exclude=./{each}" for each in LEFT_OUT]
        subprocess.run(["tar", "-C", str(root), *exclude, "-cf", str(unfinished), "."], check=True)
        unfinished.rename(archive)
    return archive
