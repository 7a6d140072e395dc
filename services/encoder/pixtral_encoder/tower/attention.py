"""Attention within each image of a packed sequence, by the fastest kernel for each length."""

import importlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate, groupby, product
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pixtral_core.model.vision_spec import VisionSpec
from pixtral_encoder.tower.compute_dtype import multiplies_bfloat16
from pixtral_encoder.tower.layers import Heads

# With fewer patches, cuDNN is no faster than a kernel that needs no plan.
LEAST_PLANNED = 1024
# On a CPU with instructions for bfloat16 but without AMX, torch's attention kernel multiplies at a
# third of the rate of torch's matrix products. So separate products are faster there for a call
# with at least LEAST_IN_PRODUCTS patches, and their scores are rounded to bfloat16. At most about
# SCORES scores are in memory at a time. For float32, and for a CPU that emulates bfloat16, torch's
# kernel is faster.
LEAST_IN_PRODUCTS = 64
SCORES = 1 << 20
# torch uses the first kernel that supports the device and dtype. On a GPU, float32 can use only the
# third and the last.
KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@dataclass(frozen=True, slots=True)
class Packing:
    """How the images of a packed sequence are passed to kernels, in its order.

    Attributes:
        groups: one entry for each call with images of equal length: the number of images, and
            their length in patches.
        ragged: for the images after the groups, 0 and then the offset of each image's end, int32
            on the device; None if there are no more images.
        longest: length of the longest ragged image, in patches.
    """

    groups: tuple[tuple[int, int], ...]
    ragged: Tensor | None = None
    longest: int = 0


class Attention:
    """Chooses kernels by device and dtype.

    On a GPU like an H100, cuDNN's kernel is a third faster than FlashAttention 2. It needs a plan
    for each length. A plan takes long to make, and only the thread that made it can use it. So
    plans are made at start, for images with the full size on one side, because a large image has
    this size after it is resized. All other images of a batch share one ragged call.

    Attributes:
        packs_ragged: whether images of different lengths can share a call.
        planned: lengths in patches for which there are plans.
    """

    def __init__(self, spec: VisionSpec, device: torch.device, dtype: torch.dtype) -> None:
        self._spec, self._device, self._dtype = spec, device, dtype
        is_gpu = device.type == "cuda"
        self.packs_ragged = is_gpu and dtype in (torch.bfloat16, torch.float16)
        if self.packs_ragged:
            # This module imports torch's compiler, which takes seconds. So it is imported here,
            # before an image waits, and never on a CPU.
            importlib.import_module("torch.nn.attention.varlen")
        self._has_fast_products = (
            device.type == "cpu"
            and dtype == torch.bfloat16
            and not torch.cpu.get_capabilities().get("amx_tile", False)
            and multiplies_bfloat16()
        )
        has_cudnn = self.packs_ragged and torch.cuda.get_device_capability(device) >= (9, 0)
        side, step = spec.max_image_size // spec.token_size * spec.merge_size, spec.merge_size
        lengths = [side * other for other in range(step, side + 1, step)]
        self.planned = frozenset(at for at in lengths if at >= LEAST_PLANNED and has_cudnn)

    @staticmethod
    def kernels() -> AbstractContextManager[None]:
        """The context in which all calls run."""
        return sdpa_kernel(KERNELS, set_priority=True)

    def prepare(self) -> None:
        """Makes the plans for the calling thread. It blocks for some seconds on a GPU."""
        heads = self._spec.heads
        for length in sorted(self.planned):
            each = torch.zeros(
                length, heads, self._spec.width // heads, device=self._device, dtype=self._dtype
            )
            self(Heads(each, each, each), Packing(((1, length),)))

    def order(self, lengths: Sequence[int]) -> list[int]:
        """Indexes of images in the order that `pack` requires."""
        return sorted(
            range(len(lengths)), key=lambda at: (lengths[at] not in self.planned, lengths[at])
        )

    def pack(self, lengths: Sequence[int]) -> Packing:
        """The packing of images of `lengths` patches each, which are in the order of `order`."""
        if not self.packs_ragged:
            # Images of equal length share a call, because each call takes time to start.
            return Packing(tuple((len(list(same)), length) for length, same in groupby(lengths)))
        groups = tuple((1, length) for length in lengths if length in self.planned)
        ragged = list(lengths[len(groups) :])
        if not ragged:
            return Packing(groups)
        ends = torch.tensor([0, *accumulate(ragged)], dtype=torch.int32, device=self._device)
        return Packing(groups, ends, max(ragged))

    def __call__(self, heads: Heads, packing: Packing) -> Tensor:
        """Every patch attends to all patches of its own image and to no other.

        Returns:
            (patches, width).
        """
        attended, start = [], 0
        for count, length in packing.groups:
            end = start + count * length
            is_worth_it = end - start >= LEAST_IN_PRODUCTS
            call = _products if self._has_fast_products and is_worth_it else _dense
            attended.append(call(heads, start, end, count))
            start = end
        if packing.ragged is not None:
            attended.append(_ragged(heads, start, packing.ragged, packing.longest))
        return attended[0] if len(attended) == 1 else torch.cat(attended)


def _dense(heads: Heads, start: int, end: int, images: int) -> Tensor:
    queries, keys, values = (
        each[start:end].view(images, -1, *each.shape[1:]).transpose(1, 2) for each in heads
    )
    attended = F.scaled_dot_product_attention(queries, keys, values)
    return attended.transpose(1, 2).flatten(2).flatten(0, 1)


def _products(heads: Heads, start: int, end: int, images: int) -> Tensor:
    queries, keys, values = (
        each[start:end].view(images, -1, *each.shape[1:]).transpose(1, 2).flatten(0, 1).contiguous()
        for each in heads
    )
    count, length, size = queries.shape
    queries = queries * size**-0.5
    attended = torch.empty_like(queries)
    # One step computes some rows of one head, or all rows of some heads.
    rows = min(length, max(1, SCORES // length))
    some = max(1, SCORES // (rows * length))
    memory = queries.new_empty(2, min(some, count) * rows * length)
    for first, row in product(range(0, count, some), range(0, length, rows)):
        which = slice(first, first + some), slice(row, row + rows)
        shape = (*queries[which].shape[:2], length)
        scores, shares = memory[:, : math.prod(shape)].view(2, *shape)
        torch.bmm(queries[which], keys[which[0]].transpose(1, 2), out=scores)
        torch.softmax(scores, -1, out=shares)
        torch.bmm(shares, values[which[0]], out=attended[which])
    return attended.view(images, -1, length, size).transpose(1, 2).flatten(2).flatten(0, 1)


def _ragged(heads: Heads, start: int, ends: Tensor, longest: int) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    queries, keys, values = (each[start:] for each in heads)
    attended = varlen_attn(queries, keys, values, ends, ends, longest, longest)
    return cast("Tensor", attended).flatten(1)
