"""Chooses the dtype in which the tower computes: the one that its device multiplies fastest.

A CPU without instructions for bfloat16 emulates them. This is many times slower than to multiply
float32.
The CPU's name and torch's flags do not say whether the library behind a product has these
instructions, so a short product measures it.
"""

import time
from collections.abc import Mapping
from functools import cache

import torch
import torch.nn.functional as F

# The measured product has about the size of a layer's products. If bfloat16 is emulated, it takes a
# tenth of a second.
ROWS, INNER, COLUMNS = 256, 512, 1024
TRIES = 3

Rates = Mapping[torch.dtype, float]


@cache
def cpu_rates() -> Rates:
    """Operations a second of one core, by dtype. It blocks, and measures once in a process."""
    threads = torch.get_num_threads()
    # With a single thread, the processor time of this thread is that of the whole product, even if
    # other processes use the machine.
    torch.set_num_threads(1)
    try:
        return {dtype: _rate(dtype) for dtype in (torch.bfloat16, torch.float32)}
    finally:
        torch.set_num_threads(threads)


def multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32."""
    rates = cpu_rates()
    return rates[torch.bfloat16] > rates[torch.float32]


def compute_dtype(asked: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which the tower computes embeddings of the dtype `asked`: the same dtype, or a
    wider one if that is faster."""
    if device.type == "cpu" and asked is torch.bfloat16 and not multiplies_bfloat16():
        return torch.float32
    return asked


def _rate(dtype: torch.dtype) -> float:
    left = torch.full((ROWS, INNER), 0.5, dtype=dtype)
    right = torch.full((COLUMNS, INNER), 0.5, dtype=dtype)

    def seconds() -> float:
        began = time.thread_time()
        F.linear(left, right)
        return time.thread_time() - began

    return 2 * ROWS * INNER * COLUMNS / min(seconds() for _ in range(TRIES))
