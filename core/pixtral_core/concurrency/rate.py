"""A rate with a burst: a token bucket that may go into debt."""

from collections.abc import Hashable
from time import monotonic


class Rate:
    """Amounts of something, such as bytes, that may be spent at `per_second` beyond a burst.

    An amount is spent when it is known, which may be after its time. The debt delays the next
    amount; it is never more than `most_debt`.
    """

    def __init__(self, per_second: float, burst: float, *, most_debt: float = float("inf")) -> None:
        self._per_second = per_second
        self._burst = burst
        self._most_debt = most_debt
        self._left = burst
        self._at = monotonic()

    def spend(self, amount: float) -> None:
        self._refill()
        self._left = max(self._left - amount, -self._most_debt)

    def wait(self) -> float:
        """The seconds until the debt is paid; 0 without a debt."""
        self._refill()
        return max(0.0, -self._left / self._per_second)

    def is_full(self) -> bool:
        self._refill()
        return self._left >= self._burst

    def fill(self) -> None:
        """Forgets what was spent."""
        self._left, self._at = self._burst, monotonic()

    def _refill(self) -> None:
        now = monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now


class Rates:
    """A rate for each party. A party that spends nothing takes no memory after a while."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._rates: dict[Hashable, Rate] = {}
        self._next_look = 16

    def __len__(self) -> int:
        return len(self._rates)

    def of(self, party: Hashable) -> Rate:
        rate = self._rates.get(party)
        if rate is None:
            if len(self._rates) >= self._next_look:
                self._rates = {
                    name: each for name, each in self._rates.items() if not each.is_full()
                }
                self._next_look = max(16, 2 * len(self._rates))
            rate = self._rates[party] = Rate(self._per_second, self._burst)
        return rate
