"""Files in memory that embeddings are handed over in."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch

from services.decoder import memory_files
from services.decoder.memory_files import SPARES, MemoryFiles
from tests.decoder.memory import SECONDS, until


@pytest.fixture
async def made() -> AsyncIterator[MemoryFiles]:
    made = MemoryFiles()
    yield made
    made.close()
    await until(0)


def embedding(rows: int) -> torch.Tensor:
    return torch.randn(rows, 1024, generator=torch.Generator().manual_seed(rows)).bfloat16()


async def test_files_hold_what_is_in_the_tensors_and_nothing_more(made: MemoryFiles) -> None:
    """Into memory that is there and into memory that is not, of whatever size it is."""
    for rows in (600, 600, 400, 1200, 600, 1200):
        tensors = [embedding(rows), embedding(rows + 1), embedding(rows // 2)]
        for tensor, file in zip(tensors, await made.holding(tensors), strict=True):
            with file:
                held = os.pread(file.fileno(), 2 * tensor.nbytes, 0)
            assert held == tensor.view(torch.uint8).numpy().tobytes()
        await until(2 * SPARES)


async def test_one_that_is_cancelled_leaves_no_file(
    made: MemoryFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, begun, may_end = memory_files._written, threading.Event(), threading.Event()

    def slowly(pairs: Any) -> Any:
        files = written(pairs)
        begun.set()
        assert may_end.wait(SECONDS)
        return files

    monkeypatch.setattr(memory_files, "_written", slowly)
    holding = asyncio.create_task(made.holding([embedding(600)]))
    await asyncio.to_thread(begun.wait, SECONDS)
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding
    may_end.set()
    await until(2 * SPARES)


async def test_where_there_is_no_memory_nothing_is_left(
    made: MemoryFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOMEM, "full")

    monkeypatch.setattr("os.posix_fallocate", full)
    new = memory_files._new
    made_so_far = iter([new, new])
    monkeypatch.setattr(memory_files, "_new", lambda: next(made_so_far, full)())
    with pytest.raises(OSError, match="full"):
        await made.holding([embedding(600)] * 3)
    await until(0)


async def test_closed_while_memory_is_had_it_leaves_none() -> None:
    made = MemoryFiles()
    (file,) = await made.holding([embedding(600)])
    made.close()
    file.close()
    await until(0)
