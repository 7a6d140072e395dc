"""Finds whether a CPU only emulates bfloat16, so that the language model should use float32.

vLLM computes in the given dtype on any CPU. If a CPU has no instructions for bfloat16, it
multiplies bfloat16 many times slower than float32 when it computes many tokens at once, as in every
prompt with an image. But float32 takes twice the memory, and for the tokens of a single answer, the
speed of the memory is the limit. So float32 is the better choice only if its multiplication is much
faster.
"""

import time
from functools import cache

import torch
import torch.nn.functional as F

ROWS, INNER, COLUMNS = 256, 512, 1024
TRIES = 3
# A CPU that emulates bfloat16 without AVX-512 multiplies float32 at least this many times faster.
MUCH_FASTER = 3.0


@cache
def imitates_bfloat16() -> bool:
    """Whether this CPU multiplies float32 much faster than bfloat16.

    The first call in a process measures it, and blocks meanwhile.
    """
    threads = torch.get_num_threads()
    # With a single thread, the thread's processor time is the time of the product, even if other
    # work runs on the machine.
    torch.set_num_threads(1)
    try:
        return _seconds(torch.bfloat16) > MUCH_FASTER * _seconds(torch.float32)
    finally:
        torch.set_num_threads(threads)


def _seconds(dtype: torch.dtype) -> float:
    left = torch.full((ROWS, INNER), 0.5, dtype=dtype)
    right = torch.full((COLUMNS, INNER), 0.5, dtype=dtype)

    def once() -> float:
        began = time.thread_time()
        F.linear(left, right)
        return time.thread_time() - began

    return min(once() for _ in range(TRIES))
