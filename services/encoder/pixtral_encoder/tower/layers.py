"""The arithmetic of the tower's layers between the attention calls.

Each part between two calls is compiled as one function.

The architecture is that of arXiv:2410.07073 and mistral-inference's `vision_encoder.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pixtral_core.model.vision_spec import VisionSpec
from pixtral_encoder.tower.fp8 import Matrix, linear
from pixtral_encoder.tower.gated_mlp import GatedProduct


class Heads(NamedTuple):
    """The tensors that attention needs, (patches, heads, head size) each."""

    queries: Tensor
    keys: Tensor
    values: Tensor


class Rotations(NamedTuple):
    """2-D RoPE: cosine and sine of the angle by which each pair of a head is turned, (patches, 1,
    1, head size / 2), float32."""

    cosines: Tensor
    sines: Tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights. Weights with the same input are one matrix.

    Attributes:
        wqkv: weights of queries, keys and values, (3 * width, width). In queries and keys, the
            first numbers of all pairs of a head precede all second numbers, so that a rotation
            works on whole halves. In checkpoints, the two numbers of a pair are side by side. The
            product of queries and keys is the same in both orders.
    """

    attention_norm: Tensor
    wqkv: Matrix
    wo: Matrix
    ffn_norm: Tensor
    gates: GatedProduct
    w2: Matrix

    @classmethod
    def of(
        cls,
        weights: Mapping[str, Tensor],
        prefix: str,
        heads: int,
        make: Callable[[Tensor], Matrix],
    ) -> "Layer":
        """Makes a layer of the tensors of a checkpoint whose names begin with `prefix`. `make`
        converts a weight to the form in which it is multiplied."""

        def named(name: str) -> Tensor:
            return weights[f"{prefix}.{name}.weight"]

        def halved(name: str) -> Tensor:
            matrix = named(name)
            pairs = matrix.view(heads, -1, 2, matrix.shape[1])
            return pairs.transpose(1, 2).reshape(matrix.shape)

        return cls(
            attention_norm=named("attention_norm"),
            wqkv=make(
                torch.cat([halved("attention.wq"), halved("attention.wk"), named("attention.wv")])
            ),
            wo=make(named("attention.wo")),
            ffn_norm=named("ffn_norm"),
            gates=GatedProduct.of(named("feed_forward.w1"), named("feed_forward.w3"), make),
            w2=make(named("feed_forward.w2")),
        )


def enter(
    patches: Tensor, patch_conv: Tensor, norm: Tensor, layer: Layer, rotations: Rotations
) -> tuple[Tensor, Heads]:
    """From flattened patches to the first layer's attention. Returns (patches, width) and the
    inputs of the attention."""
    # A convolution whose stride is its kernel is one product over the flattened patches.
    x = rms_norm(F.linear(patches, patch_conv), norm)
    return x, _project(x, layer, rotations)


def step(
    x: Tensor, attended: Tensor, layer: Layer, following: Layer, rotations: Rotations
) -> tuple[Tensor, Heads]:
    """From one layer's attention to the next one's. `x` is overwritten."""
    x = leave(x, attended, layer)
    return x, _project(x, following, rotations)


def leave(x: Tensor, attended: Tensor, layer: Layer) -> Tensor:
    """The rest of a layer after attention: (patches, width) each. `x` is overwritten."""
    _add_product(x, attended, layer.wo)
    _add_product(x, layer.gates(rms_norm(x, layer.ffn_norm)), layer.w2)
    return x


def _add_product(x: Tensor, left: Tensor, weight: Matrix) -> None:
    """`x += left @ weight.T`."""
    if isinstance(weight, Tensor):
        _add_product_in_place(x, left, weight)
    else:
        x.add_(linear(left, weight))


@torch.library.custom_op("pixtral::add_product", mutates_args={"x"})
def _add_product_in_place(x: Tensor, left: Tensor, weight: Tensor) -> None:
    # torch, and its compiler too, would copy `x` first to return the sum.
    x.addmm_(left, weight.t())


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, VisionSpec.norm_eps)


def _project(x: Tensor, layer: Layer, rotations: Rotations) -> Heads:
    cosines, sines = rotations
    head_size = 2 * cosines.shape[-1]
    qkv = linear(rms_norm(x, layer.attention_norm), layer.wqkv).view(len(x), 3, -1, head_size)
    first, second = qkv[:, :2].float().chunk(2, dim=-1)
    turned = torch.cat(
        [first * cosines - second * sines, first * sines + second * cosines], dim=-1
    ).type_as(x)
    return Heads(turned[:, 0], turned[:, 1], qkv[:, 2])
