"""A child that is spawned by a process which is killed."""

import inspect
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from pixtral_decoder.vllm_hooks import exit_with_parent
from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.v1.engine import core

# The parent prints its child's id and waits; the child waits for an hour once there is a file,
# and watches its parent from then on.
PARENT = """
import multiprocessing, os, sys, time
from pixtral_decoder.vllm_hooks import exit_with_parent

def child(begin):
    while not os.path.exists(begin):
        time.sleep(0.01)
    exit_with_parent.end_with_parent()
    time.sleep(3600)

if __name__ == "__main__":
    exit_with_parent.own()
    process = multiprocessing.get_context("spawn").Process(target=child, args=sys.argv[1:])
    process.start()
    print(process.pid, flush=True)
    process.join()
"""


# Each of these tells a process of its parent's end.
WATCHES = re.compile("parent_death|death_pipe|PDEATHSIG|getppid|parent_process|pidfd_open")


def test_still_there() -> None:
    assert_still_there(exit_with_parent)


def test_still_needed_while_an_engines_process_does_not_watch_its_parent() -> None:
    """Once this fails, see whether vLLM's engine ends by itself: `exit_with_parent` can go then."""
    assert not WATCHES.search(inspect.getsource(core))


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
