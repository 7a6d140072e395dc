"""Whether what the machine's faults say of a process is so."""

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil

from tests.faults.machine_faults import Clock, fill_disk, free_disk
from tests.support.stack.service import wait_until

HOUR = 3600

CLOCK = """
import sys, time
for _ in sys.stdin:
    print(time.time(), time.monotonic(), flush=True)
"""
WRITER = """
import sys
with open(sys.argv[1], "wb", buffering=0) as file:
    for _ in sys.stdin:
        try:
            file.write(b"x")
            print("written", flush=True)
        except OSError:
            print("full", flush=True)
"""


class Asked:
    """A process that answers each line with a line."""

    def __init__(self, code: str, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Asked":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


def test_a_clock_jumps_ahead_and_back_for_a_process_that_runs(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock")
    with Asked(CLOCK, **clock.environment) as process:

        def is_ahead(hours: int) -> bool:
            ahead = float(process.ask().split()[0]) - time.time()
            return abs(ahead - hours * HOUR) < HOUR / 2

        assert is_ahead(0)
        for hours in (2, -2, 0):
            clock.set(hours * HOUR)
            wait_until(partial(is_ahead, hours), f"{hours} h ahead")
            assert abs(float(process.ask().split()[1]) - time.monotonic()) < HOUR / 2


def test_a_full_disk_takes_no_byte_until_it_is_free(tmp_path: Path) -> None:
    with Asked(WRITER, str(tmp_path / "file")) as process:
        assert process.ask() == "written"
        fill_disk(psutil.Process(process.process.pid))
        assert process.ask() == "full"
        free_disk(psutil.Process(process.process.pid))
        assert process.ask() == "written"
