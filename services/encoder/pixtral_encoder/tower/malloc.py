"""Settings of the C library's heap for a tower on a CPU."""

import ctypes

# Names and numbers of glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8

MIB = 1 << 20


def keep_what_is_freed() -> None:
    """Up to 256 MiB of freed memory stay with the process, for the next layer.

    glibc returns the memory of a layer's results to the system as soon as it is free, and the
    system zeroes it, page by page, for the next ones. This slows a small model much. Another C
    library is left alone.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        # The largest value that glibc takes. Larger blocks come from the system each time.
        set_option(M_MMAP_THRESHOLD, 32 * MIB)
        set_option(M_TRIM_THRESHOLD, 256 * MIB)
        # The threshold holds in the first heap alone. The tower's thread would have its own heap,
        # in pieces of 64 MiB, and return each piece as soon as it is empty.
        set_option(M_ARENA_MAX, 1)
