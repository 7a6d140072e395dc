"""The faults of the machine under a process: its clock, and its disk."""

import resource
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil

from tests.faults.mutated import CLOCK


class Clock:
    """The wall clock of a process that is started with its `environment`, children and all.

    libfaketime does it, which stands between a process and the time. The monotonic clock goes on as
    it is, as it does where an operator or NTP sets the time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.set(0)

    @property
    def environment(self) -> dict[str, str]:
        package = find_spec("libfaketime")
        assert package is not None
        assert package.origin is not None
        library = "vendor/libfaketime/src/libfaketime.so.1"
        return {
            "LD_PRELOAD": str(Path(package.origin).parent / library),
            CLOCK: str(self._path),
            # Seconds, for which it does not look whether the file has changed.
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",
        }

    def set(self, ahead: int) -> None:
        """Sets the clock this many seconds ahead of the true time; less than 0 is behind it."""
        # At once, for another reader meanwhile.
        written = self._path.with_suffix(".new")
        written.write_text(f"{ahead:+d}\n", "ascii")
        written.replace(self._path)


def fill_disk(process: psutil.Process) -> None:
    """No file that it or a child of it writes can grow any more, its log's neither.

    The error is EFBIG where a full disk's is ENOSPC; no right is needed, and it also holds for what
    is opened already and for shared memory. Children that it starts meanwhile have it, too.
    """
    _limit_files(process, 0)


def free_disk(process: psutil.Process) -> None:
    _limit_files(process, resource.RLIM_INFINITY)


def _limit_files(process: psutil.Process, most: int) -> None:
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            _, hard = each.rlimit(psutil.RLIMIT_FSIZE)
            each.rlimit(psutil.RLIMIT_FSIZE, (most, hard))
