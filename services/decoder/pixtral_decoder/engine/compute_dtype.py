"""Finds whether a CPU only imitates bfloat16, so that the language model is better off in float32.

vLLM computes in the dtype that it is given, on any CPU. One without instructions for bfloat16
multiplies it many times slower than float32 where many tokens are computed at once, as in every
prompt with an image. A single answer's tokens are bound by memory, of which float32 takes twice as
much: so float32 has to be much faster before it is the better one.
"""

import time
from functools import cache

import torch
import torch.nn.functional as F

ROWS, INNER, COLUMNS = 256, 512, 1024
TRIES = 3
# float32 is at least this much faster where bfloat16 is imitated without AVX-512.
MUCH_FASTER = 3.0


@cache
def imitates_bfloat16() -> bool:
    """Whether this CPU multiplies float32 much faster; measured once in a process. Blocking."""
    threads = torch.get_num_threads()
    # With one thread, its own time is the product's, whatever else the machine does.
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
