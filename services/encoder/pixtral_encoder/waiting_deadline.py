"""The deadline of an image: the latest of all callers that wait for it."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pixtral_core.errors import DeadlineExceeded


class TooLate(DeadlineExceeded):
    """The image can no longer be encoded in time for any caller; `until` is the deadline that they
    would have."""

    def __init__(self, until: float) -> None:
        super().__init__("the image cannot be encoded before the deadline", "TOO_LATE_TO_ENCODE")
        self.until = until


class WaitingDeadline:
    """The deadlines of the callers that wait for one image now, on the monotonic clock."""

    def __init__(self, *deadlines: float) -> None:
        self._deadlines = list(deadlines)

    @property
    def until(self) -> float:
        """The latest deadline. Without callers there is none."""
        return max(self._deadlines, default=-math.inf)

    @property
    def is_over(self) -> bool:
        return not self._deadlines

    @contextmanager
    def of(self, deadline: float) -> Iterator[None]:
        self._deadlines.append(deadline)
        try:
            yield
        finally:
            self._deadlines.remove(deadline)

    def lasts(self, seconds: float) -> bool:
        """Whether a caller waits for this long from now."""
        return time.monotonic() + seconds < self.until
