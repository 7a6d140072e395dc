"""Times half of a layer's feed-forward network on a Hopper GPU: our kernel against torch's.

    python -m bench.gates

Prints, for several numbers of patches, the microseconds of the matrix product alone, of product and
gate as torch compiles them, and of our kernel, which does both. Shapes are Pixtral-12B's, in
bfloat16.
"""

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.encoder import PIXTRAL_12B
from pixtral_encoder.tower.gated_mlp import GatedProduct, has_kernel

PATCHES = (2048, 3072, 4096, 16_384)
CALLS = 50


def microseconds(call: Callable[[], object]) -> float:
    """Microseconds of a call among many, so that the cost of a launch does not count."""
    seen: list[float] = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(CALLS):
            call()
        end.record()
        end.synchronize()
        seen.append(begin.elapsed_time(end) / CALLS * 1e3)
    return statistics.median(seen)


def main() -> None:
    if not has_kernel(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.bfloat16):
        raise SystemExit("the kernel is for a Hopper GPU")
    width, inner = PIXTRAL_12B.width, PIXTRAL_12B.intermediate_size
    gate, up = (torch.randn(inner, width, device="cuda").bfloat16() / 32 for _ in range(2))
    both = torch.cat([gate, up])
    kernel = GatedProduct.of(gate, up, lambda matrix: matrix)

    def product(x: Tensor) -> Tensor:
        return F.linear(x, both)

    @torch.compile(dynamic=True)
    def gated(x: Tensor) -> Tensor:
        left, right = F.linear(x, both).chunk(2, dim=-1)
        return F.silu(left) * right

    print(torch.cuda.get_device_name())
    for patches in PATCHES:
        x = torch.randn(patches, width, device="cuda").bfloat16()
        furthest = float((kernel(x).float() - gated(x).float()).abs().max())
        told = ", ".join(
            f"{name} {microseconds(lambda call=call, x=x: call(x)):.0f} us"  # type: ignore[misc]
            for name, call in (("product", product), ("torch", gated), ("kernel", kernel))
        )
        print(f"{patches:6} patches: {told}; largest difference {furthest:.3g}", flush=True)


if __name__ == "__main__":
    main()
