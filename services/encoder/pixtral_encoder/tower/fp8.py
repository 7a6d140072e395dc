"""Multiplies the tower's large matrices in 8 bits (e4m3), on devices that are faster with it.

Each row of a weight has its own scale, which is computed at load. Each row of the other factor also
has its own scale, which is computed at each product. A scale maps the largest value of a row to the
largest e4m3 number. Sums have more bits.

Library: torch
Changes: nothing; it calls torch._scaled_mm.
Why: the public torch.nn.functional.scaled_mm came with torch 2.10, and the encoder runs with 2.9.
Upstream: https://github.com/pytorch/pytorch/pull/164142
Versions: torch 2.9 to 2.14
"""

from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from pixtral_core.hooks import Touch, check_touches

TOUCHES = (Touch("torch", "_scaled_mm"),)

LARGEST = torch.finfo(torch.float8_e4m3fn).max
LEAST_CAPABILITY = (9, 0)


def check_upstream() -> None:
    """Raises HookBroken if torch has changed."""
    check_touches(__name__, TOUCHES)


class Matrix8(NamedTuple):
    """A weight in 8 bits: values (rows, columns), e4m3, and the scale by which each row was
    divided, (1, rows)."""

    values: Tensor
    scales: Tensor


Matrix: TypeAlias = Tensor | Matrix8


def is_possible(device: torch.device) -> bool:
    """Whether torch can multiply in 8 bits on the device. It can on a CPU, but more slowly."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def quantized(matrix: Tensor) -> Matrix8:
    values, scales = _rows(matrix)
    return Matrix8(values, scales.t().contiguous())


def linear(x: Tensor, weight: Matrix) -> Tensor:
    """`x` (rows, columns) times the transposed weight, in the dtype of `x`."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight)
    values, scales = _rows(x)
    return torch._scaled_mm(
        values,
        weight.values.t(),
        scale_a=scales,
        scale_b=weight.scales,
        out_dtype=x.dtype,
        use_fast_accum=True,
    )


def _rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row divided by its scale, and the scales (rows, 1)."""
    x = x.float()
    # The least scale keeps a row of zeros from a division by zero.
    scales = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (x / scales).to(torch.float8_e4m3fn), scales
