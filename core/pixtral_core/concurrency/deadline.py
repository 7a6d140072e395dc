"""The moment by which a request is answered or given up."""

import time
from dataclasses import dataclass

from pixtral_core.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """`at` is on the monotonic clock, in seconds."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Seconds left: what a call to another process may take. Raises DeadlineExceeded."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded()
        return left
