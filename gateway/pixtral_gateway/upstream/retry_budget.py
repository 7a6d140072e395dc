"""Bounds the RPCs that may be sent a second time."""

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
    dies. A failing tier soon spends them. From then on it gets a fifth more calls than a healthy
    one.
    """

    def __init__(self, tier: str, most: Callable[[], int]) -> None:
        self._tier = tier
        self._most = most
        # More than can be saved, until the first use sets it.
        self._saved = math.inf
        self._at = time.monotonic()

    def earn(self) -> None:
        """A request makes its first call."""
        self._saved = min(self._saved + SHARE, self._most())

    def spend(self, *, midway: bool = False) -> bool:
        """Whether a call may be repeated; `midway` means from where its answer broke off."""
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
