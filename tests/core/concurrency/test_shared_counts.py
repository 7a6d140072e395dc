"""Counts of several processes, each with cells of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from pixtral_core.concurrency.shared_counts import ALONE, SharedCounts

# Holds three and takes five, and ends without giving anything back.
ENDS_AT_ONCE = """
import os, sys
from pathlib import Path
from pixtral_core.concurrency.shared_counts import SharedCounts
counts = SharedCounts(Path(sys.argv[1]), 1, 3)
counts.held("permits").add(3)
counts.taken("tokens").add(5)
os._exit(9)
"""


def ended(directory: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ENDS_AT_ONCE, str(directory)], check=False)
    assert done.returncode == 9


def test_a_process_reads_what_another_has_added(tmp_path: Path) -> None:
    ours = SharedCounts(tmp_path, 0, 3)
    permits, tokens = ours.held("permits"), ours.taken("tokens")
    permits.add(2)
    ended(tmp_path)
    assert (permits.total, permits.own) == (5, 2)
    assert tokens.total == 5
    # One that comes later reads what was there before it.
    assert SharedCounts(tmp_path, 2, 3).held("permits").total == 5


def test_a_dead_processs_permits_come_back_and_what_it_took_stays_taken(tmp_path: Path) -> None:
    permits = SharedCounts(tmp_path, 0, 3).held("permits")
    permits.add(2)
    ended(tmp_path)
    SharedCounts(tmp_path, 1, 3).give_back()
    assert permits.total == 2
    taken = SharedCounts(tmp_path, 1, 3).taken("tokens")
    assert taken.total == 5
    taken.add(1)
    assert (taken.own, taken.total) == (6, 6)


def test_counts_of_two_names_are_two(tmp_path: Path) -> None:
    counts = SharedCounts(tmp_path, 0, 2)
    counts.held("a").add(1)
    assert counts.held("b").total == 0


def test_a_process_alone_keeps_its_counts_to_itself() -> None:
    count = ALONE.held("permits")
    count.add(2)
    count.add(-1)
    assert (count.total, ALONE.held("permits").total) == (1, 0)
    ALONE.give_back()


def test_a_folder_that_is_not_there_is_an_error_and_no_count(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        SharedCounts(tmp_path / "missing", 0, 2).held("permits")
