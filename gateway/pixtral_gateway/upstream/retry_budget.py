"""Bounds the RPCs that may be sent a second time."""

import math
import time
from collections.abc import Callable

from pixtral_core.telemetry.request_log import count
from pixtral_gateway.metrics import RETRIES

# The share of requests that may be retried, and the budget where requests are few.
SHARE = 0.2
PER_SECOND = 1.0


class RetryBudget:
    """Each request earns a fifth of a retry, each second one; up to `most()` of them are saved.

    While a tier is well they are saved, so that all that runs on a replica can go elsewhere at once
    when that dies. While it is not they are soon spent, and from then on a failing tier gets hardly
    more calls than a healthy one: a fifth more.
    """

    def __init__(self, tier: str, most: Callable[[], int]) -> None:
        self._tier = tier
        self._most = most
        # More than may be saved, until it is first looked at.
        self._saved = math.inf
        self._at = time.monotonic()

    def earn(self) -> None:
        """A request is made for the first time."""
        self._saved = min(self._saved + SHARE, self._most())

    def spend(self, *, midway: bool = False) -> bool:
        """Whether a call may be made again; `midway`, from where its answer broke off."""
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
