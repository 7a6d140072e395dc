"""Turns of tenants."""

import asyncio

import pytest

from pixtral_core.concurrency.turns import Turns


class Work:
    """Pieces of work, each of which goes on until the test ends it."""

    def __init__(self, most: int) -> None:
        self.turns = Turns(most)
        self.begun: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    async def start(self, name: str, amount: float = 1.0) -> "asyncio.Task[None]":
        """`name` begins with its tenant's letter."""
        self._ends[name] = asyncio.Event()

        async def work() -> None:
            async with self.turns.turn(name[0], amount):
                self.begun.append(name)
                await self._ends[name].wait()

        task = asyncio.create_task(work())
        await settled()
        return task

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
            await settled()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_finds_room_starts_at_once() -> None:
    work = Work(2)
    for name in ("a1", "a2", "a3"):
        await work.start(name)
    assert work.begun == ["a1", "a2"]
    await work.end("a2")
    assert work.begun == ["a1", "a2", "a3"]
    await work.end("a1", "a3")


async def test_tenants_are_next_by_turns() -> None:
    work = Work(1)
    names = ["a1", "a2", "a3", "a4", "b1", "b2", "c1"]
    for name in names:
        await work.start(name)
    for _ in names:
        await work.end(work.begun[-1])
    assert set(work.begun[1:4]) == {"a2", "b1", "c1"}
    assert set(work.begun[4:6]) == {"a3", "b2"}
    assert work.begun[6] == "a4"


async def test_large_pieces_are_fewer() -> None:
    work = Work(1)
    await work.start("x1")
    for number in range(3):
        await work.start(f"a{number}", amount=10.0)
        await work.start(f"b{number}", amount=5.0)
    for _ in range(6):
        await work.end(work.begun[-1])
    assert work.begun[1:4] in (["a0", "b0", "b1"], ["b0", "a0", "b1"])
    await work.end(work.begun[-1])


@pytest.mark.parametrize("is_next", [False, True])
async def test_one_that_is_cancelled_takes_no_turn(is_next: bool) -> None:
    work = Work(1)
    await work.start("a1")
    waiting = await work.start("a2")
    await work.start("b1")
    if is_next:
        # Its turn has come, and it does not know yet.
        work._ends["a1"].set()
        await asyncio.sleep(0)
    waiting.cancel()
    await settled()
    await work.end("a1")
    assert work.begun[-1] == "b1"
    await work.end("b1")
    await work.start("a3")
    assert work.begun[-1] == "a3"
    await work.end("a3")


async def test_a_failure_ends_its_turn() -> None:
    turns = Turns(1)
    for _ in range(3):
        with pytest.raises(KeyError):
            async with turns.turn("a"):
                raise KeyError


async def test_work_that_ends_in_the_step_in_which_others_are_cancelled_leaves_its_turn() -> None:
    work = Work(1)
    runs, waits, last = [await work.start(name) for name in ("a1", "a2", "a3")]
    # The first of them to run finds the other cancelled, and not gone yet.
    for task in (runs, waits):
        task.cancel()
    await settled()
    assert work.begun == ["a1", "a3"]
    assert runs.cancelled()
    assert waits.cancelled()
    await work.end("a3")
    await last
    await work.start("b1")
    assert work.begun[-1] == "b1"
    await work.end("b1")
