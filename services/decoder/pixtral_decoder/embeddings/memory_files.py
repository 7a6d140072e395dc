"""Anonymous files in memory, each with the bytes of one large embedding.

The decoder passes a file to another process, which then reads the embedding without a copy. The
system takes as long to allocate the memory of an embedding as the network takes to deliver one. So
this module allocates some files before embeddings arrive.
"""

import asyncio
import os
import resource
import threading
import weakref

import torch

from pixtral_core.concurrency.unread_errors import read_error

# For an embedding of fewer bytes, a file costs more time than it saves.
LEAST_BYTES = 1 << 20
SPARES = 2
# The delay before memory is allocated or freed, so that neither competes with an embedding that is
# being delivered.
SECONDS = 0.02


class MemoryFile:
    """A file that is open and mapped while this object lives.

    Attributes:
        descriptor: descriptor of the file.
        memory: content of the file, as bytes.
    """

    def __init__(self, size: int) -> None:
        self.descriptor = os.memfd_create("image-embedding")
        weakref.finalize(self, os.close, self.descriptor)
        os.truncate(self.descriptor, size)
        self.memory = mapped(self.descriptor, size)


class MemoryFiles:
    """Provides files for incoming embeddings.

    Any thread may call `take`. Only one event loop may call the other methods.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Each file is as large as the largest embedding at the time when it was made.
        self._spares: list[MemoryFile] = []
        self._largest = 0
        self._living: weakref.WeakSet[MemoryFile] = weakref.WeakSet()
        # The process needs the other half of its descriptors for other files.
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        self._making: asyncio.Future[None] | None = None
        self._is_closed = False

    def take(self, size: int) -> MemoryFile | None:
        """A file of that size.

        None for a size below LEAST_BYTES, and if too many files are in use or no memory is left.
        """
        if size < LEAST_BYTES:
            return None
        with self._lock:
            if self._spares and len(self._spares[0].memory) < size:
                self._spares.clear()
            file = self._spares.pop() if self._spares else None
            if file is None and len(self._living) >= self._most:
                return None
        try:
            if file is None:
                file = MemoryFile(size)
            else:
                os.truncate(file.descriptor, size)
        except OSError:
            return None
        with self._lock:
            self._living.add(file)
        return file

    def refill_soon(self, size: int) -> None:
        """Allocates spare files after a short delay.

        `size` must be the size of an embedding that has passed its checks, because spare files get
        the largest such size. A value that fails the checks may claim any size.
        """
        self._largest = max(self._largest, size)
        if len(self._spares) < SPARES:
            asyncio.get_running_loop().call_later(SECONDS, self._refill)

    def close(self) -> None:
        """Frees the spare files. Files that `take` has returned stay valid."""
        with self._lock:
            self._is_closed = True
            self._spares.clear()

    def _refill(self) -> None:
        if self._making is None and not self._is_closed:
            self._making = asyncio.get_running_loop().run_in_executor(None, self._make_spares)
            self._making.add_done_callback(self._made)

    def _made(self, making: asyncio.Future[None]) -> None:
        self._making = None
        # If no memory is left for a file, the next embedding arrives in ordinary memory.
        read_error(making)

    def _make_spares(self) -> None:
        while len(self._spares) < SPARES and not self._is_closed:
            size = self._largest
            file = MemoryFile(size)
            os.posix_fallocate(file.descriptor, 0, size)
            # posix_fallocate allocates the pages of the file. A write also maps them into this
            # process.
            file.memory.zero_()
            with self._lock:
                if self._is_closed or len(file.memory) < self._largest:
                    continue
                self._living.add(file)
                self._spares.append(file)


def mapped(file: int, size: int) -> torch.Tensor:
    """The file's memory, as bytes.

    The memory stays mapped while the tensor lives, even if the file closes.
    """
    # Python's own mmap would keep the file open.
    return torch.from_file(f"/proc/self/fd/{file}", shared=True, size=size, dtype=torch.uint8)
