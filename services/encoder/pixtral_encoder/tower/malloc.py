"""Settings of the C library's heap for a tower on a CPU."""

import ctypes

# Names and numbers of glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8

MIB = 1 << 20


def keep_what_is_freed() -> None:
    """Up to 256 MiB of it stay with the process, for the next layer.

    glibc's default gives the memory of a layer's results back to the system as soon as they are not
    needed, and has it zeroed, page by page, for the next ones. This slows a small model much.
    Another C library is left alone.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        # The largest that glibc takes; what is larger is from the system each time.
        set_option(M_MMAP_THRESHOLD, 32 * MIB)
        set_option(M_TRIM_THRESHOLD, 256 * MIB)
        # The threshold holds in the first heap alone. The tower's thread would have one of its own,
        # in pieces of 64 MiB, and give each back as soon as it is empty.
        set_option(M_ARENA_MAX, 1)
