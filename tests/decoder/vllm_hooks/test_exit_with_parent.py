"""A child that is spawned by a process which is killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# The parent prints its child's id and waits; the child waits for an hour once there is a file,
# and watches its parent from then on.
PARENT = """
import multiprocessing, os, sys, time
from pixtral_decoder.vllm_hooks import exit_with_parent

def child(begin):
    while not os.path.exists(begin):
        time.sleep(0.01)
    orphan.end_with_parent()
    time.sleep(3600)

if __name__ == "__main__":
    orphan.own()
    process = multiprocessing.get_context("spawn").Process(target=child, args=sys.argv[1:])
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


@pytest.mark.parametrize("killed", ["before it watches", "while it watches"])
def test_it_ends_with_its_parent(killed: str, tmp_path: Path) -> None:
    script, begin = tmp_path / "parent.py", tmp_path / "begin"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, script, begin],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
    if killed == "while it watches":
        begin.touch()
    assert exists(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    begin.touch()

    deadline = time.monotonic() + 60
    while exists(child):
        assert time.monotonic() < deadline, "the child outlives its parent"
        time.sleep(0.01)
