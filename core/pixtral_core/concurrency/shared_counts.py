"""Counts that several processes keep together, in files that all of them map into their memory.

Each process writes its own cell and reads the cells of all, so it needs no lock that a dead process
could leave taken. The process that cleans up after a dead one gives back the amounts that were in
use; an amount that only grows stays.
"""

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CELL_BYTES: Final = 8
_HELD, _TAKEN = "held-", "taken-"


class Count:
    """The sum of the amounts of all processes. Only one thread of a process may add to it."""

    __slots__ = ("_cells", "_own")

    def __init__(self, cells: memoryview, own: int) -> None:
        self._cells = cells
        self._own = own

    @classmethod
    def alone(cls) -> "Count":
        """A count for this process alone."""
        return cls(memoryview(bytearray(CELL_BYTES)).cast("q"), 0)

    @property
    def total(self) -> int:
        return sum(self._cells)

    @property
    def own(self) -> int:
        """The amount that this process has added."""
        return self._cells[self._own]

    def add(self, amount: int) -> None:
        self._cells[self._own] += amount


@dataclass(frozen=True, slots=True)
class SharedCounts:
    """The counts of process number `own`. Each count is a file in `directory`.

    A count has the name of its file. Without a directory there is one process.
    """

    directory: Path | None = None
    own: int = 0
    processes: int = 1

    def held(self, name: str) -> Count:
        """A count of an amount in use, which the process gives back later."""
        return self._count(_HELD + name)

    def taken(self, name: str) -> Count:
        """A count that only grows."""
        return self._count(_TAKEN + name)

    def give_back(self) -> None:
        """Gives back what process number `own` had in use. It blocks, and must run only after that
        process has ended."""
        if self.directory is None:
            return
        for path in self.directory.glob(f"{_HELD}*"):
            count = self._count(path.name)
            count.add(-count.own)

    def _count(self, name: str) -> Count:
        if self.directory is None:
            return Count.alone()
        size = self.processes * CELL_BYTES
        # The first process makes the file, filled with zeros. It allocates the blocks now: on a
        # full disk, an error here is better than the signal that ends a process which writes to the
        # file later.
        with (self.directory / name).open("a+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
            cells = memoryview(mmap.mmap(file.fileno(), size)).cast("q")
        return Count(cells, self.own)


ALONE: Final = SharedCounts()
