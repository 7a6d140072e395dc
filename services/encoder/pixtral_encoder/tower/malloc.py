"""Settings of the C library's heap for a tower on a CPU."""

import ctypes

# Names and numbers of glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8

MIB = 1 << 20


def keep_what_is_freed() -> None:
    """Makes glibc keep up to 256 MiB of freed memory, for the next layer.

    Without this, glibc returns the memory of a layer's results to the system as soon as it is free,
    and the system fills each page with zeros before the next layer can use it. This makes a small
    model much slower. The function has no effect with another C library.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        # This is the largest value that glibc accepts. Larger blocks still come from the system.
        set_option(M_MMAP_THRESHOLD, 32 * MIB)
        set_option(M_TRIM_THRESHOLD, 256 * MIB)
        # The threshold applies only to the first heap. Without this option, the tower's thread has
        # its own heap in pieces of 64 MiB, and glibc returns each piece as soon as it is empty.
        set_option(M_ARENA_MAX, 1)
