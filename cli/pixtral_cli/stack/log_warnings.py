"""Finds the warnings in the logs of a stack's tiers, for a user who watches the stack."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# A line of the tiers' log formatter has date, time, level, logger and message.
_LINE = re.compile(r"\S+ \S+ (?:WARNING|ERROR) +pixtral_[\w.]+: (.*)")
_LEVELS = ("warning", "error")
# Several tiers may log the same message about one event. A message is shown only if it was last
# logged longer ago than this.
_SAME_SECONDS = 30.0


class LogWarnings:
    """Reads new lines of the logs in a directory. `NAME.log` is the log of process NAME."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        self._read: dict[Path, int] = {}
        self._last: dict[str, float] = {}

    def new(self) -> Iterator[tuple[str, str]]:
        """Pairs of a process's name and a new message of level warning or error."""
        for path in sorted(self._directory.glob("*.log")):
            for line in self._new_lines(path):
                message = _warning(line)
                if message is not None and not self._is_repeated(message):
                    yield path.stem, message

    def _new_lines(self, path: Path) -> list[str]:
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            # A line that is being written is read the next time.
            whole = file.read().rpartition(b"\n")[0]
        if not whole:
            return []
        self._read[path] = self._read.get(path, 0) + len(whole) + 1
        return whole.decode("utf-8", "replace").split("\n")

    def _is_repeated(self, message: str) -> bool:
        now = self._clock()
        last, self._last[message] = self._last.get(message, -_SAME_SECONDS), now
        return now - last < _SAME_SECONDS


def _warning(line: str) -> str | None:
    if not line.startswith("{"):
        found = _LINE.fullmatch(line)
        return found[1] if found else None
    try:
        record = json.loads(line)
        is_ours = record["logger"].startswith("pixtral_") and record["level"] in _LEVELS
        return str(record["message"]) if is_ours else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
