"""Tells `pixtral-serve up` how much of its weights a process has loaded.

It counts the bytes of the tensors that have gone through this project's own loaders: the encoder's,
and the decoder's model class, to which vLLM gives one tensor after the other. No other source is as
exact: a mapped file does not count as read in /proc/PID/io, and vLLM's own line counts files, of
which Pixtral-12B has one.
"""

import os
from contextlib import suppress
from pathlib import Path

# The environment variable with the file's path. The processes that a tier starts inherit it.
VARIABLE = "PIXTRAL_LOADED_FILE"


class LoadProgress:
    """Writes the percentage that is loaded, a whole number, to the file that PIXTRAL_LOADED_FILE
    names. Without that variable it writes nothing.

    Args:
        total: bytes of all tensors.
    """

    def __init__(self, total: int) -> None:
        path = os.environ.get(VARIABLE)
        self._path = Path(path) if path else None
        self._total = total
        self._loaded = 0
        self._written = -1

    def add(self, count: int) -> None:
        """Counts the bytes of a tensor."""
        self._loaded += count
        percent = min(100, 100 * self._loaded // max(1, self._total))
        if self._path is None or percent == self._written:
            return
        self._written = percent
        unfinished = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        # The tier serves even if it cannot write the file, for example on a full disk.
        with suppress(OSError):
            unfinished.write_text(f"{percent}\n", "utf-8")
            unfinished.replace(self._path)
