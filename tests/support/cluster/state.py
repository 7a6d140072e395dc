"""The results of a session so far, a file for each: images, namespaces, objects and open ports.

Files are separate, because the programs of a session can run at the same time.
"""

import argparse
import base64
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from tools.deploy.objects import Object, name_of

# The longest time until a background program has started or failed.
FORWARDED_SECONDS = 60


class Fault(Exception):
    """A real program or cluster would refuse this command."""


class Arguments(argparse.ArgumentParser):
    """A parser without abbreviations, whose errors are faults."""

    def __init__(self, name: str) -> None:
        super().__init__(prog=name, allow_abbrev=False, add_help=False)

    def error(self, message: str) -> NoReturn:
        raise Fault(f"{self.prog}: {message}")


class State:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for kind in ("images", "namespaces", "objects", "ports"):
            (directory / kind).mkdir(parents=True, exist_ok=True)

    def image(self, name: str, step: str) -> None:
        """Records that an image was `built`, `pushed` or `loaded`."""
        (self._directory / "images" / quote(f"{step} {name}", safe="")).touch()

    def has_image(self, name: str, *steps: str) -> bool:
        files = (self._directory / "images" / quote(f"{step} {name}", safe="") for step in steps)
        return any(file.exists() for file in files)

    def make_namespace(self, name: str) -> None:
        (self._directory / "namespaces" / name).touch()

    def has_namespace(self, name: str) -> bool:
        return (self._directory / "namespaces" / name).exists()

    def put(self, namespace: str, obj: Object) -> None:
        """Stores an object. Raises Fault if the namespace does not exist."""
        if not self.has_namespace(namespace):
            raise Fault(f'namespaces "{namespace}" not found')
        self._file(namespace, obj["kind"], name_of(obj)).write_text(json.dumps(obj))

    def find(self, namespace: str, kind: str, name: str) -> Object | None:
        file = self._file(namespace, kind, name)
        found: Object | None = json.loads(file.read_text()) if file.exists() else None
        return found

    def get(self, namespace: str, kind: str, name: str) -> Object:
        """The object. Raises Fault if there is none."""
        found = self.find(namespace, kind, name)
        if found is None:
            raise Fault(f'{kind.lower()} "{name}" not found in {namespace}')
        return found

    def delete(self, namespace: str, kind: str, name: str) -> None:
        self._file(namespace, kind, name).unlink()

    def objects(self, namespace: str) -> list[Object]:
        files = sorted((self._directory / "objects").glob(f"{namespace} *"))
        return [json.loads(file.read_text()) for file in files]

    def forward(self, port: int) -> None:
        (self._directory / "ports" / str(port)).touch()

    def await_port(self, port: int) -> None:
        """Waits until a background program has opened a port of this machine.

        Raises Fault if another program fails meanwhile, or if no program opens the port.
        """
        until = time.monotonic() + FORWARDED_SECONDS
        while not (self._directory / "ports" / str(port)).exists():
            if self.faults() or time.monotonic() > until:
                raise Fault(f"nothing listens at port {port}")
            time.sleep(0.02)

    def fault(self, line: str) -> None:
        with (self._directory / "faults").open("a") as file:
            file.write(f"{line}\n")

    def faults(self) -> list[str]:
        file = self._directory / "faults"
        return file.read_text().splitlines() if file.exists() else []

    def run(self, line: str) -> None:
        with (self._directory / "programs").open("a") as file:
            file.write(f"{line}\n")

    def programs(self) -> list[str]:
        file = self._directory / "programs"
        return file.read_text().splitlines() if file.exists() else []

    def _file(self, namespace: str, kind: str, name: str) -> Path:
        return self._directory / "objects" / f"{namespace} {kind} {name}"


def secret_entries(secret: Object) -> dict[str, bytes]:
    """The decoded entries of a Secret."""
    encoded = {key: base64.b64decode(text) for key, text in secret.get("data", {}).items()}
    return encoded | {key: text.encode() for key, text in secret.get("stringData", {}).items()}


def existing(name: str) -> Path:
    """A file that a program reads. Raises Fault if it does not exist."""
    path = Path(name)
    if not path.is_file():
        raise Fault(f"there is no file {name}")
    return path


def set_variable(name: str) -> str:
    """The value of a variable. Raises Fault if it is unset or empty."""
    value = os.environ.get(name)
    if not value:
        raise Fault(f"{name} is not set")
    return value


def pairs(texts: list[str]) -> Iterator[tuple[str, str]]:
    """Splits each NAME=VALUE. Raises Fault if the value is missing or empty."""
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value:
            raise Fault(f"{text!r} has no value")
        yield name, value
