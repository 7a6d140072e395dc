"""The examples that run without a registry of their own, as their README has them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.clients.asking import ANSWER, MODEL, PICTURE, QUESTION, ROOT, URL

EXAMPLES = ROOT / "examples"
NPM = ROOT / ".cache" / "clients" / "examples"
CLIENTS = ROOT / ".cache" / "clients" / "bin" / "python"
# `npm run` puts it so.
PATH = f"{NPM / 'node_modules' / '.bin'}:{os.environ['PATH']}"
TARGET = os.environ.get("PIXTRAL_CLIENTS_GRPC", "")


def run(command: Sequence[str | Path], folder: Path = ROOT, seconds: float = 100) -> str:
    ended = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": PATH, "PIXTRAL_TARGET": TARGET, "PIXTRAL_URL": URL},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert ended.returncode == 0, ended.stdout[-1000:] + ended.stderr[-2000:]
    return ended.stdout


@pytest.fixture(scope="module")
def typescript() -> Path:
    """A copy beside the packages that `make test-clients` installs, with the code generated."""
    for file in (EXAMPLES / "typescript").iterdir():
        if file.is_file():
            shutil.copy(file, NPM)
    public = ROOT / "protos" / "pixtral" / "v1"
    generate = ["buf", "generate", str(ROOT), "--template", "buf.gen.yaml"]
    run([*generate, "--path", str(public)], NPM)
    return NPM


def assert_answered(output: str) -> None:
    lines = dict(line.split(": ", 1) for line in output.splitlines())
    assert lines["model"] == MODEL
    assert lines["whole"] == lines["stream"] == ANSWER
    assert lines["refused"]


def test_python_over_grpc() -> None:
    assert_answered(run([sys.executable, EXAMPLES / "python" / "over_grpc.py"]))


def test_python_over_http() -> None:
    assert_answered(run([CLIENTS, EXAMPLES / "python" / "over_http.py"]))


@pytest.mark.parametrize("script", ["grpc_js.ts", "connect.ts"])
def test_typescript(typescript: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setenv("PIXTRAL_PROTOS", str(ROOT / "protos"))
    assert_answered(run(["tsx", script, PICTURE, QUESTION], typescript))


def test_typescript_is_of_its_types(typescript: Path) -> None:
    run(["tsc"], typescript)


def test_curl() -> None:
    whole, _, stream = run([EXAMPLES / "curl" / "ask.sh"]).partition("\n")
    assert json.loads(whole)["choices"][0]["message"]["content"] == ANSWER
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line]
    assert events.pop() == "[DONE]"
    deltas = [choice["delta"] for each in events for choice in json.loads(each)["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == ANSWER


@pytest.mark.parametrize(("tool", "needs"), [("go_example", ()), ("java_example", ("javac",))])
def test_with_packages_of_debian(tool: str, needs: Sequence[str]) -> None:
    missing = [each for each in ("apt-get", "dpkg", *needs) if shutil.which(each) is None]
    if missing:
        pytest.skip(f"this machine has no {missing[0]}")
    built, _, output = run([ROOT / "tools" / tool], seconds=380).partition("\n")
    assert built.startswith("the example in ")
    assert_answered(output)
