"""Room in a tier's queue, which tenants share."""

from collections.abc import Iterator
from contextlib import contextmanager

from pixtral_core.errors import Overloaded

SPARE = 0.25
"""What the queue holds beyond its limit, of the limit, for tenants with less than their share."""


class QueueShares:
    """One tenant alone may fill the queue; others then still find room, up to their shares."""

    def __init__(self, limit: int, full: str) -> None:
        """`full` is what an error says."""
        self._limit = limit
        self._full = full
        self._taken: dict[str, int] = {}

    @contextmanager
    def room(self, tenant: str, amount: int) -> Iterator[None]:
        """Raises Overloaded where there is none; what is alone always has it."""
        if not self._has_room(tenant, amount):
            raise Overloaded(self._full)
        self._taken[tenant] = self._taken.get(tenant, 0) + amount
        try:
            yield
        finally:
            self._taken[tenant] -= amount
            if not self._taken[tenant]:
                del self._taken[tenant]

    def _has_room(self, tenant: str, amount: int) -> bool:
        total, own = sum(self._taken.values()) + amount, self._taken.get(tenant, 0)
        if total <= self._limit or not self._taken:
            return True
        share = self._limit // len(self._taken.keys() | {tenant})
        return total <= self._limit * (1 + SPARE) and own + amount <= share
