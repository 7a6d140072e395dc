"""The vLLM plug-in."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.decoder import plugin

ROOT = Path(__file__).parents[2]

# The parent prints its child's id and waits; the child waits for an hour.
PARENT = """
import multiprocessing, time
from services.decoder import plugin

def child():
    plugin._end_with_parent()
    time.sleep(3600)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    print(process.pid, flush=True)
    process.join()
"""


def exists(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_the_engines_process_ends_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"},
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
    assert exists(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()

    deadline = time.monotonic() + 20
    while exists(child):
        assert time.monotonic() < deadline, "the child outlives its parent"
        time.sleep(0.01)


def test_vllm_finds_the_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert plugin.is_installed()
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    assert not plugin.is_installed()
