"""The gated half of a layer's feed-forward network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pixtral_encoder.tower.fp8 import Matrix, linear


@dataclass(frozen=True, slots=True)
class GatedProduct:
    """`silu(x @ gate.T) * (x @ up.T)`, with both weights in one matrix.

    On a GPU like an H100, one kernel computes everything (`gated_mlp_kernel.py`). Without the
    kernel, torch writes the product to memory and reads it again for the gate, which takes a third
    of the product's time.

    Attributes:
        weight: both weights, (2 * intermediate size, width). For the kernel, rows of gate and up
            alternate, so that one thread gets both numbers of a pair. Otherwise all rows of the
            gate come first.
        is_fused: whether `weight` has the order for the kernel.
    """

    weight: Matrix
    is_fused: bool

    @classmethod
    def of(cls, gate: Tensor, up: Tensor, make: Callable[[Tensor], Matrix]) -> "GatedProduct":
        """`gate` and `up` are (intermediate size, width); `make` makes one matrix of both."""
        weight = make(torch.cat([gate, up]))
        if isinstance(weight, Tensor) and has_kernel(gate.device, gate.dtype):
            return cls(torch.stack([gate, up], dim=1).flatten(0, 1), is_fused=True)
        return cls(weight, is_fused=False)

    def __call__(self, x: Tensor) -> Tensor:
        """Maps (patches, width) to (patches, intermediate size)."""
        if self.is_fused:
            from pixtral_encoder.tower.gated_mlp_kernel import gated

            return gated(x, cast("Tensor", self.weight))
        gate, up = linear(x, self.weight).chunk(2, dim=-1)
        return F.silu(gate) * up


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel supports this device and dtype. Its tiles need the shared memory of
    Hopper GPUs."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(device)[0] == 9
