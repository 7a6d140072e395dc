"""Runs a limited number of pieces of work at once; tenants that wait take turns."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar


class Turned(Protocol):
    @property
    def tenant(self) -> str: ...

    @property
    def amount(self) -> float: ...


W = TypeVar("W", bound=Turned)

# A new tenant gets this much less than the least amount, and so goes ahead of equal tenants.
FIRST = 1e-6


class Given:
    """The amount of work that each waiting tenant has got.

    A tenant that is new, or comes back, begins with the least amount of all: no tenant saves up
    turns while it has no work.
    """

    def __init__(self) -> None:
        self._given: dict[str, float] = {}

    def add(self, tenant: str, amount: float) -> None:
        self._given[tenant] = self._given.get(tenant, 0.0) + amount

    def keep(self, tenants: Iterable[str]) -> None:
        """Forgets all tenants except these, and adds those of them that are new."""
        wanted = set(tenants)
        least = min((self._given[each] for each in wanted if each in self._given), default=0.0)
        self._given = {each: max(self._given.get(each, 0.0), least - FIRST) for each in wanted}

    def by_turns(self, waiting: Iterable[W]) -> list[W]:
        """The waiting entries in the order of their turns; a tenant's own entries keep their
        order."""
        queues: dict[str, deque[W]] = {}
        for each in waiting:
            queues.setdefault(each.tenant, deque()).append(each)
        given = {tenant: self._given.get(tenant, 0.0) for tenant in queues}
        order: list[W] = []
        while queues:
            tenant = min(queues, key=lambda each: given[each])
            first = queues[tenant].popleft()
            given[tenant] += first.amount
            order.append(first)
            if not queues[tenant]:
                del queues[tenant]
        return order


class _Waiting:
    __slots__ = ("amount", "may_run", "tenant")

    def __init__(self, tenant: str, amount: float) -> None:
        self.tenant = tenant
        self.amount = amount
        self.may_run: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Turns:
    """Runs `most` pieces of work at once. The tenant with the least work done is next."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: list[_Waiting] = []
        self._given = Given()

    @asynccontextmanager
    async def turn(self, tenant: str, amount: float = 1.0) -> AsyncIterator[None]:
        """Waits for a turn, which lasts as long as the block. `amount` is the work of the turn."""
        await self._acquire(_Waiting(tenant, amount))
        try:
            yield
        finally:
            self._free += 1
            self._run_next()

    async def _acquire(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        self._run_next()
        try:
            await waiting.may_run
        except asyncio.CancelledError:
            if waiting.may_run.done() and not waiting.may_run.cancelled():
                self._free += 1
                self._run_next()
            elif waiting in self._waiting:
                self._waiting.remove(waiting)
            raise

    def _run_next(self) -> None:
        self._given.keep(each.tenant for each in self._waiting)
        while self._free and self._waiting:
            first = self._given.by_turns(self._waiting)[0]
            self._waiting.remove(first)
            if first.may_run.done():
                # It was cancelled, and has not run since.
                continue
            self._given.add(first.tenant, first.amount)
            self._free -= 1
            first.may_run.set_result(None)
