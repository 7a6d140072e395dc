"""Room in a tier's queue, which tenants share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pixtral_core.errors import Overloaded

SPARE = 0.25
"""The queue's reserve for tenants with less than their share, as a fraction of its limit."""


def is_within_share(taken: Mapping[str, int], tenant: str, amount: int, limit: int) -> bool:
    """Whether a full queue accepts `amount` more from a tenant; `taken` has each tenant's amount in
    the queue."""
    share = limit // len(taken.keys() | {tenant})
    total = sum(taken.values()) + amount
    return total <= limit * (1 + SPARE) and taken.get(tenant, 0) + amount <= share


class QueueShares:
    """One tenant alone may fill the queue. Others then still find room, up to their shares."""

    def __init__(self, limit: int, full: str) -> None:
        """`full` is the message of the error if the queue has no room."""
        self._limit = limit
        self._full = full
        self._taken: dict[str, int] = {}

    @contextmanager
    def room(self, tenant: str, amount: int) -> Iterator[None]:
        """Reserves `amount` of the queue for the block. Raises Overloaded if the queue has no room;
        an empty queue accepts any amount."""
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
        if not self._taken or sum(self._taken.values()) + amount <= self._limit:
            return True
        return is_within_share(self._taken, tenant, amount, self._limit)
