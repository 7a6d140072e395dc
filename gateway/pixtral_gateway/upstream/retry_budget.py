"""Bounds the number of RPCs that may be sent again."""

import math
import time
from collections.abc import Callable

from pixtral_core.telemetry.request_log import count
from pixtral_gateway.metrics import RETRIES

# The share of requests that may be retried, and the retries a second when requests are few.
SHARE = 0.2
PER_SECOND = 1.0


class RetryBudget:
    """Each request earns a fifth of a retry, and each second earns one. At most `most()` retries
    are saved.

    A healthy tier saves retries, so that everything on a replica can move at once when the replica
    dies. A failing tier soon spends them. From then on the failing tier gets a fifth more calls
    than a healthy one.
    """

    def __init__(self, tier: str, most: Callable[[], int]) -> None:
        self._tier = tier
        self._most = most
        # The first use reduces this to the most that can be saved.
        self._saved = math.inf
        self._at = time.monotonic()

    def earn(self) -> None:
        """Adds the share of a retry that a request's first call earns."""
        self._saved = min(self._saved + SHARE, self._most())

    def spend(self, *, midway: bool = False) -> bool:
        """Takes one retry; False if none is left. `midway` means that the retry continues the
        answer from where it broke off."""
        now = time.monotonic()
        self._saved = min(self._saved + (now - self._at) * PER_SECOND, self._most())
        self._at = now
        if self._saved < 1:
            RETRIES.labels(self._tier, "refused").inc()
            return False
        self._saved -= 1
        result = "continued" if midway else "retried"
        RETRIES.labels(self._tier, result).inc()
        count(result)
        return True
