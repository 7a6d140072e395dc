"""Finds whether a CPU only emulates bfloat16, so that the language model should use float32.

vLLM computes in the given dtype on any CPU. A CPU without instructions for bfloat16 multiplies it
many times slower than float32 when it computes many tokens at once, as in every prompt with an
image. Memory bounds a single answer's tokens, and float32 takes twice as much. So float32 must be
much faster to be the better choice.
"""

import time
from functools import cache

import torch
import torch.nn.functional as F

ROWS, INNER, COLUMNS = 256, 512, 1024
TRIES = 3
# float32 is at least this much faster if bfloat16 is emulated without AVX-512.
MUCH_FASTER = 3.0


@cache
def imitates_bfloat16() -> bool:
    """Whether this CPU multiplies float32 much faster; measured once in a process. Blocking."""
    threads = torch.get_num_threads()
    # A single thread's own time is that of the product, whatever else the machine does.
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
