"""Pixtral's vision tower, up to the cut: pixels to image embeddings.

The architecture is that of arXiv:2410.07073 and mistral-inference's `vision_encoder.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from embeddings.vision import VisionSpec

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Packed:
    """Where the images of one packed sequence lie, those of equal length beside each other.

    Attributes:
        grids: patches of each image, (rows, columns), in order.
        rotations: of each patch, (patches, 1, 1, head size / 2), complex64.
    """

    grids: tuple[tuple[int, int], ...]
    rotations: Tensor

    @property
    def lengths(self) -> list[int]:
        return [rows * cols for rows, cols in self.grids]

    @property
    def groups(self) -> list[tuple[int, int]]:
        """Of images of equal length: how many, and how long each is."""
        return [(len(list(images)), length) for length, images in groupby(self.lengths)]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights; what multiplies the same input is one matrix.

    Attributes:
        wqkv: queries, keys and values, (3 * width, width).
        w13: the gate and what it lets through, (2 * intermediate size, width).
    """

    attention_norm: Tensor
    wqkv: Tensor
    wo: Tensor
    ffn_norm: Tensor
    w13: Tensor
    w2: Tensor


def tensor_shapes(spec: VisionSpec) -> dict[str, Shape]:
    """What a Mistral-format checkpoint holds for the tower, by name."""
    width, inner, side = spec.width, spec.intermediate_size, spec.patch_size
    shapes: dict[str, Shape] = {
        "vision_encoder.patch_conv.weight": (width, spec.channels, side, side),
        "vision_encoder.ln_pre.weight": (width,),
    }
    for index in range(spec.layers):
        prefix = _layer_prefix(index)
        shapes[f"{prefix}.attention_norm.weight"] = (width,)
        for name in ("wq", "wk", "wv", "wo"):
            shapes[f"{prefix}.attention.{name}.weight"] = (width, width)
        shapes[f"{prefix}.ffn_norm.weight"] = (width,)
        shapes[f"{prefix}.feed_forward.w1.weight"] = (inner, width)
        shapes[f"{prefix}.feed_forward.w2.weight"] = (width, inner)
        shapes[f"{prefix}.feed_forward.w3.weight"] = (inner, width)
    if spec.has_pre_projector_norm:
        shapes["pre_mm_projector_norm.weight"] = (width,)
    if spec.has_merger:
        shapes["patch_merger.merging_layer.weight"] = (width, width * spec.merge_size**2)
    return shapes


class VisionTower:
    """The whole of a Pixtral before its vision-language adapter.

    All images of a call are one packed sequence: nothing is padded and nothing masked. An
    image's embedding does not depend on its companions, save for rounding (below 1e-6 in
    float32): products of only a few rows are summed in another order.
    """

    def __init__(self, spec: VisionSpec, weights: Mapping[str, Tensor]) -> None:
        """`weights` has the names and shapes of `tensor_shapes`, all of one dtype and device."""
        self._spec = spec
        self._patch_conv = weights["vision_encoder.patch_conv.weight"].flatten(1)
        self._ln_pre = weights["vision_encoder.ln_pre.weight"]
        self._layers = [_layer(weights, _layer_prefix(index)) for index in range(spec.layers)]
        self._projector_norm = weights.get("pre_mm_projector_norm.weight")
        self._merging_layer = weights.get("patch_merger.merging_layer.weight")
        self.device, self.dtype = self._patch_conv.device, self._patch_conv.dtype
        exponents = torch.arange(0, spec.width // spec.heads, 2, dtype=torch.float32)
        self._frequencies = 1.0 / spec.rope_theta ** (exponents * spec.heads / spec.width)

    @torch.inference_mode()
    def embed(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Embeds images of any sizes.

        Args:
            images: one or more of (3, height, width), normalised; sides are multiples of the
                patch size times the merge size.

        Returns:
            For each image (tokens, width) in the tower's dtype, on its device.
        """
        order = sorted(range(len(images)), key=lambda at: images[at][0].numel())
        x, packed = self._patches([images[at] for at in order])
        for layer in self._layers:
            x = x + self._attention(layer, self._norm(x, layer.attention_norm), packed)
            x = x + _feed_forward(layer, self._norm(x, layer.ffn_norm))
        if self._projector_norm is not None:
            x = self._norm(x, self._projector_norm)
        lengths = packed.lengths
        if self._merging_layer is not None:
            x = F.linear(self._squares(x, packed), self._merging_layer)
            lengths = [length // self._spec.merge_size**2 for length in lengths]
        embeddings = dict(zip(order, torch.split(x, lengths), strict=True))
        return [embeddings[at] for at in range(len(images))]

    def _patches(self, images: Sequence[Tensor]) -> tuple[Tensor, Packed]:
        """(patches, width) of all images, row by row, and where each of them lies."""
        side = self._spec.patch_size
        flat, grids = [], []
        for image in images:
            channels, height, width = image.shape
            rows, cols = height // side, width // side
            squares = image.view(channels, rows, side, cols, side).permute(1, 3, 0, 2, 4)
            flat.append(squares.reshape(rows * cols, -1).to(self.device, self.dtype))
            grids.append((rows, cols))
        # A convolution whose stride is its kernel is one product over the flattened patches.
        x = self._norm(F.linear(torch.cat(flat), self._patch_conv), self._ln_pre)
        rotations = torch.cat([self._rotations(*grid) for grid in grids])
        return x, Packed(tuple(grids), rotations.to(self.device))

    def _rotations(self, rows: int, cols: int) -> Tensor:
        """2-D RoPE: the even frequencies turn with the row and fill the first half of a head,
        the odd ones turn with the column and fill the second."""
        by_row = torch.outer(torch.arange(rows), self._frequencies[0::2])
        by_col = torch.outer(torch.arange(cols), self._frequencies[1::2])
        angles = torch.cat(
            [by_row[:, None].expand(rows, cols, -1), by_col[None].expand(rows, cols, -1)], dim=-1
        )
        return torch.polar(torch.ones_like(angles), angles).view(rows * cols, 1, 1, -1)

    def _attention(self, layer: Layer, x: Tensor, packed: Packed) -> Tensor:
        """Every patch attends to all patches of its own image and to no other."""
        qkv = F.linear(x, layer.wqkv).view(len(x), 3, self._spec.heads, -1)
        queries_keys = _rotate(qkv[:, :2], packed.rotations)
        sizes = [count * length for count, length in packed.groups]
        attended = [
            # Images of equal length are one call: many small ones would wait for its start.
            _attend(*(each.view(*group, *each.shape[1:]) for each in (qk[:, 0], qk[:, 1], values)))
            for group, qk, values in zip(
                packed.groups,
                torch.split(queries_keys, sizes),
                torch.split(qkv[:, 2], sizes),
                strict=True,
            )
        ]
        return F.linear(torch.cat(attended), layer.wo)

    def _squares(self, x: Tensor, packed: Packed) -> Tensor:
        """One row for each square of patches that is merged; channels outermost, as torch's
        unfold has them."""
        side = self._spec.merge_size
        squares = [
            image.view(rows // side, side, cols // side, side, -1)
            .permute(0, 2, 4, 1, 3)
            .reshape(rows * cols // side**2, -1)
            for image, (rows, cols) in zip(
                torch.split(x, packed.lengths), packed.grids, strict=True
            )
        ]
        return torch.cat(squares)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self._spec.norm_eps)


def _layer_prefix(index: int) -> str:
    return f"vision_encoder.transformer.layers.{index}"


def _layer(weights: Mapping[str, Tensor], prefix: str) -> Layer:
    def of(*names: str) -> Tensor:
        return torch.cat([weights[f"{prefix}.{name}.weight"] for name in names])

    return Layer(
        attention_norm=of("attention_norm"),
        wqkv=of("attention.wq", "attention.wk", "attention.wv"),
        wo=of("attention.wo"),
        ffn_norm=of("ffn_norm"),
        w13=of("feed_forward.w1", "feed_forward.w3"),
        w2=of("feed_forward.w2"),
    )


def _rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Turns each adjacent pair of `x` (patches, ..., heads, head size) by its patch's rotation."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotations).flatten(-2).type_as(x)


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention within each image: (images, patches, heads, head size) each, to (all patches,
    width)."""
    attended = F.scaled_dot_product_attention(
        queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
    )
    return attended.transpose(1, 2).flatten(2).flatten(0, 1)


def _feed_forward(layer: Layer, x: Tensor) -> Tensor:
    gate, up = F.linear(x, layer.w13).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, layer.w2)
