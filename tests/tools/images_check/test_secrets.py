"""The Secrets of docs/deploy.md, and how they reach a pod."""

import base64
import os
import shutil
from pathlib import Path

import pytest

from tools.deploy.objects import name_of
from tools.images_check.node import publish
from tools.images_check.secrets import make, renew, secrets_of

KEY = "key:  pixtral-abc\nhash: sha256:0123\n"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
def test_the_page_makes_every_secret(tmp_path: Path) -> None:
    directory = tmp_path / "desk"
    found = {name_of(each): each["data"] for each in make(directory, KEY)}

    assert set(found["gateway-tls"]) == {"tls.crt", "tls.key", "ca.crt"}
    assert {"redis", "api-keys", "encoder-tls", "decoder-tls", "redis-tls"} <= set(found)
    assert b"sha256:0123" in base64.b64decode(found["api-keys"]["tenants.toml"])
    before = (directory / "gateway.crt").read_text()
    renew(directory, "gateway")
    assert (directory / "gateway.crt").read_text() != before


def test_calls_of_kubectl_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.key").write_text("k")
    words = ["create", "secret", "generic", "s", "--namespace", "n", "--from-literal=p=a=b"]
    call = "\0".join([*words, "--from-file=tls.key=a.key", "--from-file=a.key", "\n\0"])

    (found,) = secrets_of(b"apply\0-f\0x\0\n\0" + call.encode(), tmp_path)
    data = {name: base64.b64decode(value).decode() for name, value in found["data"].items()}
    assert data == {"p": "a=b", "tls.key": "k", "a.key": "k"}


def test_published_files_change_together(tmp_path: Path) -> None:
    publish(tmp_path, {"tls.crt": "1", "tls.key": "1"}, os.getgid(), 0o440)
    first = (tmp_path / "tls.crt").resolve()
    publish(tmp_path, {"tls.crt": "2", "tls.key": "2"}, os.getgid(), 0o440)

    assert (tmp_path / "tls.crt").read_text() == "2"
    assert first.read_text() == "1"
    assert (tmp_path / "tls.key").stat().st_mode & 0o777 == 0o440
