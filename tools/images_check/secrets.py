"""The Secrets that docs/deploy.md makes, by its own commands."""

import base64
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tools.deploy.guide import PAGE
from tools.deploy.objects import Object

HEADING = "### 2. Secrets"
# In place of a cluster and of Docker: the first keeps its arguments, the second prints new keys,
# which the gateway's image has made before.
PROGRAMS = r"""
kubectl() { printf '%s\0' "$@" >>kubectl.calls; printf '\n\0' >>kubectl.calls; }
docker() { cat new-key.txt; }
"""


def make(directory: Path, new_key: str) -> list[Object]:
    """The Secrets, which refer to files that stay in `directory`: ca.crt, key.txt and the rest.

    `new_key` is what `pixtral-serve key` prints. Raises CalledProcessError.
    """
    directory.mkdir(parents=True)
    (directory / "new-key.txt").write_text(new_key)
    found = re.search(
        rf"^{re.escape(HEADING)}\n.*?^```sh\n(.*?)^```",
        PAGE.read_text("utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    if found is None:
        raise ValueError(f"{PAGE} has no commands below {HEADING!r}")
    environment = {**os.environ, "HF_TOKEN": "none", "REGISTRY": "localhost"}
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", PROGRAMS + found[1]],
        cwd=directory,
        env=environment,
        check=True,
        capture_output=True,
    )
    return list(secrets_of((directory / "kubectl.calls").read_bytes(), directory))


def secrets_of(calls: bytes, directory: Path) -> Iterator[Object]:
    """The Secrets that calls of kubectl, as `PROGRAMS` keeps them, would create."""
    for call in calls.decode().split("\n\0"):
        words = call.removesuffix("\0").split("\0")
        if words[:3] == ["create", "secret", "generic"]:
            yield secret(words[3], dict(_entries(words[4:], directory)))


def _entries(words: list[str], directory: Path) -> Iterator[tuple[str, str]]:
    for word in words:
        option, _, value = word.partition("=")
        name, _, text = value.partition("=")
        if option == "--from-literal":
            yield name, text
        elif option == "--from-file":
            path = directory / (text or name)
            yield (name if text else path.name), path.read_text("utf-8")


def secret(name: str, entries: Mapping[str, str]) -> Object:
    data = {key: base64.b64encode(text.encode()).decode() for key, text in entries.items()}
    return {"kind": "Secret", "metadata": {"name": name}, "data": data}


def renew(directory: Path, name: str) -> None:
    """A new certificate of the same authority for a new key, in the files of the last one."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    request = ["-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr"]
    authority = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "365"]
    files = ["-in", f"{name}.csr", "-extfile", f"{name}.ext", "-out", f"{name}.crt"]
    for command in (["req", *curve, *request], ["x509", "-req", *authority, *files]):
        subprocess.run(["openssl", *command], cwd=directory, check=True, capture_output=True)
