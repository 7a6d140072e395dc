"""Anonymous files in memory, each with what one embedding holds.

To get 8 MB of memory from the system takes three milliseconds and more, to copy an embedding into
memory that is there half a one. So some is had before it is needed.
"""

import asyncio
import io
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch

SPARES = 2
# Until they are had: not while a request that was waited for goes on its way.
SECONDS = 0.02


class Spare(NamedTuple):
    """A file whose memory is there: it is that of the tensor, of bytes."""

    file: io.FileIO
    memory: torch.Tensor


class MemoryFiles:
    """Makes them; for one event loop."""

    def __init__(self) -> None:
        # Each as large as the largest embedding when it was made.
        self._spares: list[Spare] = []
        self._largest = 0
        self._used: list[torch.Tensor] = []
        self._making: asyncio.Future[Spare] | None = None
        self._is_closed = False

    async def holding(self, tensors: Sequence[torch.Tensor]) -> list[io.FileIO]:
        """For each tensor, one or more, a file with its bytes. Cancelled, it leaves none.

        Raises OSError where there is no memory.
        """
        self._largest = max(self._largest, *(tensor.nbytes for tensor in tensors))
        spares = [self._take(tensor.nbytes) for tensor in tensors]
        pairs = list(zip(tensors, spares, strict=True))
        writing = asyncio.get_running_loop().run_in_executor(None, _written, pairs)
        # To let go of memory takes time, too, and is left to the thread that gets new.
        writing.add_done_callback(
            lambda _: self._used.extend(spare.memory for spare in spares if spare is not None)
        )
        try:
            files = await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The thread writes on.
            writing.add_done_callback(_close_written)
            raise
        finally:
            asyncio.get_running_loop().call_later(SECONDS, self._make_spare)
        return files

    def close(self) -> None:
        """Files that were returned stay."""
        self._is_closed = True
        self._drop_spares()
        self._used.clear()

    def _take(self, size: int) -> Spare | None:
        if self._spares and len(self._spares[0].memory) < size:
            self._drop_spares()
        return self._spares.pop() if self._spares else None

    def _drop_spares(self) -> None:
        for spare in self._spares:
            spare.file.close()
        self._spares.clear()

    def _make_spare(self) -> None:
        if self._making is not None or self._is_closed:
            return
        used, self._used = self._used, []
        run = asyncio.get_running_loop().run_in_executor
        if len(self._spares) < SPARES:
            self._making = run(None, _spare, self._largest, used)
            self._making.add_done_callback(self._keep_spare)
        elif used:
            run(None, used.clear)

    def _keep_spare(self, making: asyncio.Future[Spare]) -> None:
        self._making = None
        if making.cancelled() or making.exception() is not None:
            # The next embedding is written to memory that is had for it, or fails by it.
            return
        spare = making.result()
        if self._is_closed or len(spare.memory) < self._largest:
            spare.file.close()
        else:
            self._spares.append(spare)
        self._make_spare()


def _written(pairs: Sequence[tuple[torch.Tensor, Spare | None]]) -> list[io.FileIO]:
    files = []
    with ExitStack() as failing:
        for _, spare in pairs:
            if spare is not None:
                failing.enter_context(spare.file)
        for tensor, spare in pairs:
            values = tensor.contiguous().flatten().view(torch.uint8)
            if spare is not None:
                file = spare.file
                spare.memory[: len(values)].copy_(values)
                file.truncate(len(values))
            else:
                file = failing.enter_context(_new())
                left = values.numpy().data
                while left:
                    left = left[file.write(left) :]
            files.append(file)
        failing.pop_all()
    return files


def _close_written(writing: asyncio.Future[list[io.FileIO]]) -> None:
    if not writing.cancelled() and writing.exception() is None:
        for file in writing.result():
            file.close()


def _spare(size: int, used: list[torch.Tensor]) -> Spare:
    used.clear()
    with ExitStack() as failing:
        file = failing.enter_context(_new())
        os.posix_fallocate(file.fileno(), 0, size)
        # Written to, its memory is this process's, too, and not the file's alone.
        spare = Spare(file, mapped(file.fileno(), size).zero_())
        failing.pop_all()
    return spare


def mapped(file: int, size: int) -> torch.Tensor:
    """The file's memory, as bytes, for as long as the tensor lives; the file may be closed."""
    # Python's own mmap would keep the file open.
    return torch.from_file(f"/proc/self/fd/{file}", shared=True, size=size, dtype=torch.uint8)


def _new() -> io.FileIO:
    return io.FileIO(os.memfd_create("image-embedding"), "r+")
