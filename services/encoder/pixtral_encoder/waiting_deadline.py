"""The deadline of an image: the latest deadline among the callers that wait for the image."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pixtral_core.errors import DeadlineExceeded


class TooLate(DeadlineExceeded):
    """The image cannot be encoded in time for any caller; `until` is the callers' latest
    deadline."""

    def __init__(self, until: float) -> None:
        super().__init__("the image cannot be encoded before the deadline", "TOO_LATE_TO_ENCODE")
        self.until = until


class WaitingDeadline:
    """The deadlines of the callers that wait for one image now, on the monotonic clock."""

    def __init__(self, *deadlines: float) -> None:
        self._deadlines = list(deadlines)

    @property
    def until(self) -> float:
        """The latest deadline; minus infinity if no caller waits."""
        return max(self._deadlines, default=-math.inf)

    @property
    def is_over(self) -> bool:
        """Whether no caller waits."""
        return not self._deadlines

    @contextmanager
    def of(self, deadline: float) -> Iterator[None]:
        """Counts one more caller, with this deadline, until the context ends."""
        self._deadlines.append(deadline)
        try:
            yield
        finally:
            self._deadlines.remove(deadline)

    def lasts(self, seconds: float) -> bool:
        """Whether the latest deadline is more than `seconds` from now."""
        return time.monotonic() + seconds < self.until
