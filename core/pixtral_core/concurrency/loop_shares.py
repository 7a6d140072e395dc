"""Shares the event loop's time among parties whose work keeps it from all others."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

T = TypeVar("T")

# A piece of work is followed by so many times its own length in which its party has no other.
REST: Final = 2.0
# A shorter one is not worth a timer.
LEAST_REST_SECONDS: Final = 0.001


class Turn:
    """The turn of one party at a time; its pieces of work have a rest after each."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._rested_at = 0.0
        self._wanted = 0

    @property
    def is_idle(self) -> bool:
        return not self._wanted and self._rested_at <= time.monotonic()

    @asynccontextmanager
    async def taken(self) -> AsyncIterator["Turn"]:
        self._wanted += 1
        try:
            async with self._lock:
                yield self
        finally:
            self._wanted -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, which keeps the event loop from others, once the party has rested
        from its last piece."""
        if (rest := self._rested_at - time.monotonic()) > LEAST_REST_SECONDS:
            await asyncio.sleep(rest)
        began = time.monotonic()
        try:
            return work()
        finally:
            ended = time.monotonic()
            self._rested_at = ended + REST * (ended - began)


class LoopShares:
    """Gives each party turns one after the other, in the order of their coming.

    However much a party sends, its work takes a third of the event loop, in pieces, and the loop
    is free for others after each.
    """

    def __init__(self) -> None:
        self._turns: dict[str, Turn] = {}

    @asynccontextmanager
    async def turn(self, party: str) -> AsyncIterator[Turn]:
        """Waits for the party's turn, which lasts as long as the block."""
        turn = self._turns.get(party)
        if turn is None:
            self._turns = {name: each for name, each in self._turns.items() if not each.is_idle}
            turn = self._turns[party] = Turn()
        async with turn.taken():
            yield turn
