"""The time until which a request must be answered."""

import time
from dataclasses import dataclass

from pixtral_core.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment by which work must end. `at` is on the monotonic clock, in seconds."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """The seconds that are left for a call to another process. Raises DeadlineExceeded if none
        are left."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded()
        return left
