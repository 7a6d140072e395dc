"""Memory that values are received in."""

import mmap
from collections.abc import Callable

# Gives memory to write to, of the size in bytes that it is asked for; in any thread.
Memory = Callable[[int], memoryview]


def new_memory(size: int) -> memoryview:
    """Zeros, had from the system as they are written over."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
