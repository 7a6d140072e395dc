"""Files in memory that embeddings are received in."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator

import pytest
import torch

from services.decoder import memory_files
from services.decoder.memory_files import LEAST_BYTES, SPARES, MemoryFile, MemoryFiles, Room
from tests.decoder.memory import SECONDS, until

SIZE = 2 * LEAST_BYTES


@pytest.fixture
async def made() -> AsyncIterator[MemoryFiles]:
    made = MemoryFiles()
    yield made
    made.close()
    await until(0)


async def receive(made: MemoryFiles, value: bytes) -> Room:
    """As from Redis: in a thread."""

    def write() -> Room:
        room = Room(made)
        room(len(value))[:] = value
        return room

    try:
        return await asyncio.to_thread(write)
    finally:
        made.refill_soon()


async def test_files_hold_what_was_received_and_nothing_more(made: MemoryFiles) -> None:
    """In memory that is there and in memory that is not, of whatever size it is."""
    for size in (SIZE, SIZE + 1, SIZE // 2, 2 * SIZE, SIZE, 2 * SIZE):
        values = [os.urandom(size), os.urandom(size), os.urandom(size // 2 + LEAST_BYTES)]
        rooms = [await receive(made, value) for value in values]
        for value, room in zip(values, rooms, strict=True):
            assert room.file is not None
            assert os.pread(room.file.descriptor, 4 * SIZE, 0) == value
        del rooms, room
        await until(2 * SPARES)


async def test_a_file_lives_for_as_long_as_it_is_held(made: MemoryFiles) -> None:
    value = os.urandom(SIZE)
    room = await receive(made, value)
    held = room.file
    del room
    await until(2 * SPARES + 2)
    assert held is not None
    assert held.memory[:SIZE].numpy().tobytes() == value


async def test_small_ones_are_in_no_file(made: MemoryFiles) -> None:
    room = Room(made)
    memory = room(LEAST_BYTES - 1)
    assert (room.file, len(memory)) == (None, LEAST_BYTES - 1)


async def test_there_are_files_for_half_of_what_the_process_may_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (4, 4))
    made = MemoryFiles()
    rooms = [Room(made) for _ in range(3)]
    sizes = [len(room(SIZE)) for room in rooms]
    assert sizes == [SIZE] * 3
    assert [room.file is not None for room in rooms] == [True, True, False]
    del rooms[0]
    assert made.take(SIZE) is not None


async def test_where_no_file_can_be_had_there_is_other_memory(
    made: MemoryFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def full(name: str) -> None:
        asked.append(name)
        raise OSError(errno.EMFILE, "full")

    monkeypatch.setattr("os.memfd_create", full)
    room = await receive(made, os.urandom(SIZE))
    assert room.file is None
    # Neither is there a spare, of which nobody is told.
    async with asyncio.timeout(SECONDS):
        while len(asked) < 2:
            await asyncio.sleep(0.01)


async def test_closed_while_memory_is_had_it_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = threading.Event(), threading.Event()

    class Slow(MemoryFile):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            begun.set()
            assert may_end.wait(SECONDS)

    made = MemoryFiles()
    await receive(made, os.urandom(SIZE))
    monkeypatch.setattr(memory_files, "MemoryFile", Slow)
    await asyncio.to_thread(begun.wait, SECONDS)
    made.close()
    may_end.set()
    await until(0)


def test_what_is_mapped_is_the_files() -> None:
    file = MemoryFile(8)
    file.memory.copy_(torch.arange(8, dtype=torch.uint8))
    assert os.pread(file.descriptor, 8, 0) == bytes(range(8))
