"""Files in memory that embeddings are received in."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator

import pytest
import torch

from pixtral_decoder.embeddings import memory_files
from pixtral_decoder.embeddings.memory_files import LEAST_BYTES, SPARES, MemoryFile, MemoryFiles
from tests.decoder.memory import SECONDS, until

SIZE = 2 * LEAST_BYTES


@pytest.fixture
async def made() -> AsyncIterator[MemoryFiles]:
    made = MemoryFiles()
    yield made
    made.close()
    await until(0)


async def receive(made: MemoryFiles, value: bytes) -> MemoryFile:
    """As from Redis: in a thread."""

    def write() -> MemoryFile:
        file = made.take(len(value))
        assert file is not None
        file.memory[: len(value)].numpy().data[:] = value
        return file

    file = await asyncio.to_thread(write)
    made.refill_soon(len(value))
    return file


async def test_files_hold_what_was_received_and_nothing_more(made: MemoryFiles) -> None:
    """In memory that is there and in memory that is not, of whatever size it is."""
    for size in (SIZE, SIZE + 1, SIZE // 2, 2 * SIZE, SIZE, 2 * SIZE):
        values = [os.urandom(size), os.urandom(size), os.urandom(size // 2 + LEAST_BYTES)]
        files = [await receive(made, value) for value in values]
        for value, file in zip(values, files, strict=True):
            assert os.pread(file.descriptor, 4 * SIZE, 0) == value
        del files, file
        await until(2 * SPARES)


async def test_a_file_lives_for_as_long_as_it_is_held(made: MemoryFiles) -> None:
    value = os.urandom(SIZE)
    file = await receive(made, value)
    await until(2 * SPARES + 2)
    assert file.memory[:SIZE].numpy().tobytes() == value


def test_small_ones_are_in_no_file() -> None:
    assert MemoryFiles().take(LEAST_BYTES - 1) is None


def test_there_are_files_for_half_of_what_the_process_may_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (4, 4))
    made = MemoryFiles()
    files = [made.take(SIZE) for _ in range(3)]
    assert [file is not None for file in files] == [True, True, False]
    del files[0]
    assert made.take(SIZE) is not None


async def test_where_none_can_be_had_there_is_none(
    made: MemoryFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def full(name: str) -> None:
        asked.append(name)
        raise OSError(errno.EMFILE, "full")

    monkeypatch.setattr("os.memfd_create", full)
    assert made.take(SIZE) is None
    # Neither is there a spare, which no caller learns of.
    made.refill_soon(SIZE)
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
