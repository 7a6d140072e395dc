"""Bounds the processor time that each tenant's structured outputs take between steps of the engine.

The engine computes the allowed tokens of structured outputs one after the other, and all requests
wait meanwhile. This computation mostly takes microseconds. But a grammar can become ambiguous late
in an answer, beyond every trial, and then the time grows with each token.
"""

import time
from collections.abc import Callable

from pixtral_core import limits

STRUCTURE_TOO_SLOW = "pixtral: structure too slow"
"""The stop reason of a request that the scheduler ends because its structure is too slow."""
ORDINARY_SECONDS = limits.STRUCTURE_STEP_SECONDS.high
"""The time that a request may take in each step without a charge."""
BURST_SECONDS = limits.STRUCTURE_BUDGET_SECONDS.high
"""The budget of a tenant: the most charged time that the tenant may spend at once."""
SHARE = 0.05
"""The fraction of elapsed time by which a tenant's budget refills."""


class MaskBudget:
    """The budget that each tenant has left. A tenant with its whole budget takes no memory."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._spent: dict[str, float] = {}
        self._since = clock()

    def charge(self, tenant: str, seconds: float) -> bool:
        """Charges the time that one request took in a step. Returns False if the tenant's budget is
        spent."""
        beyond = seconds - ORDINARY_SECONDS
        if beyond <= 0:
            return True
        self._refill()
        spent = self._spent.get(tenant, 0.0) + beyond
        # A tenant owes no more than its budget, because the request that exceeds the budget ends.
        self._spent[tenant] = min(spent, BURST_SECONDS)
        return spent <= BURST_SECONDS

    def _refill(self) -> None:
        now = self._clock()
        earned, self._since = SHARE * (now - self._since), now
        left = {tenant: spent - earned for tenant, spent in self._spent.items()}
        self._spent = {tenant: spent for tenant, spent in left.items() if spent > 0}
