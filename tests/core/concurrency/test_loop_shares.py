"""Turns of the event loop."""

import asyncio
import time
from collections.abc import Callable
from functools import partial

import pytest

from pixtral_core.concurrency import loop_shares
from pixtral_core.concurrency.loop_shares import LoopShares


class Work:
    """Pieces of work that note when they ran, and take some time by the clock."""

    def __init__(self) -> None:
        self.shares = LoopShares()
        self.ran: list[str] = []

    def piece(self, name: str) -> str:
        began = time.monotonic()
        while time.monotonic() == began:
            pass
        self.ran.append(name)
        return name.upper()

    def start(self, *pieces: str) -> "asyncio.Task[list[str]]":
        """One turn with these pieces, whose names begin with their party's letter."""

        async def work() -> list[str]:
            async with self.shares.turn(pieces[0][0]) as turn:
                return [await turn.run(partial(self.piece, each)) for each in pieces]

        return asyncio.create_task(work())


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_party_that_rests_leaves_the_loop_to_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_shares, "REST", 1e12)
    work = Work()
    resting = [work.start("a1", "a2"), work.start("a3")]
    await settled()
    assert await work.start("b1") == ["B1"]
    assert work.ran == ["a1", "b1"]
    for each in resting:
        each.cancel()
    await asyncio.wait(resting)


async def test_a_partys_turns_come_in_their_order_and_none_within_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_shares, "REST", 1.0)
    work = Work()
    pieces = [[f"a{turn}{piece}" for piece in "xyz"] for turn in range(5)]
    results = await asyncio.gather(*(work.start(*each) for each in pieces))
    assert work.ran == [each for turn in pieces for each in turn]
    assert results == [[each.upper() for each in turn] for turn in pieces]


async def test_work_that_fails_or_is_cancelled_ends_its_turn() -> None:
    shares, ran = LoopShares(), list[int]()

    def fail() -> None:
        raise LookupError

    async def turn(work: Callable[[], None]) -> None:
        async with shares.turn("a") as own:
            await own.run(work)

    with pytest.raises(LookupError):
        await turn(fail)
    async with shares.turn("a"):
        waiting = asyncio.create_task(turn(fail))
        await settled()
        waiting.cancel()
        await asyncio.wait((waiting,))
    await turn(lambda: ran.append(1))
    assert ran == [1]
