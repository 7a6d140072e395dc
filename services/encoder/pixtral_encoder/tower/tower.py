"""Pixtral's vision tower, up to the cut: pixels to image embeddings."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pixtral_core.model.vision_spec import VisionSpec
from pixtral_encoder.tower import fp8, layers
from pixtral_encoder.tower.attention import Attention, Packing
from pixtral_encoder.tower.cuda_graphs import MOST_IMAGES, MOST_PATCHES, Graphs
from pixtral_encoder.tower.layers import Layer, Rotations
from pixtral_encoder.tower.packing import runs

Shape = tuple[int, ...]

# On a CPU, the memory of a run grows with its patches, and more patches do not make the tower
# faster. If the C library keeps little memory (`malloc.py`), they make it slower.
MOST_PATCHES_ON_CPU = 1024


@dataclass(frozen=True, slots=True)
class Staged:
    """An image on the tower's device. Its patches are in rows from the top.

    Attributes:
        patches: the pixels, (rows * columns, channels * patch size²), in the tower's dtype.
        positions: row and column of each patch, (2, rows * columns).
        rows: number of rows of patches.
        cols: number of columns of patches.
    """

    patches: Tensor
    positions: Tensor
    rows: int
    cols: int


def tensor_shapes(spec: VisionSpec) -> dict[str, Shape]:
    """The tensors of a Mistral-format checkpoint for the tower, by name."""
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
    """The part of a Pixtral before its vision-language adapter.

    The images of a call are packed into sequences without a mask, and nothing attends to the
    padding of a CUDA graph. An image's embedding does not depend on its companions, except for
    rounding (below 1e-6 in float32): a product of only a few rows is summed in another order than
    a larger one.

    One thread calls `embed` and `begin`. Any thread may call `stage` and `fetch`, even at the same
    time.
    """

    def __init__(
        self,
        spec: VisionSpec,
        weights: Mapping[str, Tensor],
        *,
        embedding_dtype: torch.dtype | None = None,
        is_compiled: bool = False,
        is_fp8: bool = False,
    ) -> None:
        """`weights` has the names and shapes of `tensor_shapes`, with one dtype and device for all.

        The tower computes in their dtype, and rounds embeddings to `embedding_dtype`; None for
        the weights' dtype. With `is_fp8`, the products of its layers have 8 bits. With
        `is_compiled`, `prepare` compiles the parts between attention calls, for all numbers of
        patches at once.
        """
        self._spec = spec
        self._patch_conv = weights["vision_encoder.patch_conv.weight"].flatten(1)
        self._ln_pre = weights["vision_encoder.ln_pre.weight"]
        make = fp8.quantized if is_fp8 else _as_it_is
        self._layers = [
            Layer.of(weights, _layer_prefix(index), spec.heads, make)
            for index in range(spec.layers)
        ]
        self._projector_norm = weights.get("pre_mm_projector_norm.weight")
        self._merging_layer = weights.get("patch_merger.merging_layer.weight")
        self.device, self.dtype = self._patch_conv.device, self._patch_conv.dtype
        self._embedding_dtype = embedding_dtype or self.dtype
        self._attention = Attention(spec, self.device, self.dtype)
        exponents = torch.arange(0, spec.width // spec.heads, 2, dtype=torch.float32)
        frequencies = 1.0 / spec.rope_theta ** (exponents * spec.heads / spec.width)
        self._frequencies = frequencies.to(self.device)
        self._enter, self._step, self._leave = layers.enter, layers.step, layers.leave
        self._is_compiled = is_compiled
        self._graphs: Graphs | None = None
        if is_compiled:
            self._enter = torch.compile(layers.enter)
            self._step = torch.compile(layers.step)
            self._leave = torch.compile(layers.leave)
        self._stage_stream = _stream(self.device)
        self._fetch_stream = _stream(self.device)

    def prepare(self) -> None:
        """Does the work for which the first images would otherwise wait.

        Call it in the thread that will call `embed`. It blocks: on a GPU it compiles, which takes
        from ten seconds to a minute.
        """
        spec = self._spec
        largest = spec.max_image_size // spec.token_size
        # The compiler makes one program for a single row, and another for any number of rows. It
        # tunes the second program for the first batch that it sees, so that batch is the largest,
        # which takes longest.
        for side in (1, largest) if self._is_compiled else (1,):
            size = side * spec.token_size
            self.embed([self.stage(np.zeros((spec.channels, size, size), np.float32))])
        with torch.inference_mode(), self._attention.kernels():
            self._attention.prepare()
            if self._is_compiled and self._attention.packs_ragged:
                graphs = Graphs(
                    self._all_layers,
                    width=spec.width,
                    patch=self._patch_conv.shape[1],
                    like=self._patch_conv,
                )
                graphs.record(sorted(self._attention.planned))
                self._graphs = graphs

    @torch.inference_mode()
    def stage(self, pixels: NDArray[np.float32]) -> Staged:
        """Moves an image to the device and cuts it into patches. It blocks.

        Args:
            pixels: (channels, height, width), normalised; sides are multiples of the patch size
                times the merge size.
        """
        side = self._spec.patch_size
        channels, height, width = pixels.shape
        rows, cols = height // side, width // side
        with torch.cuda.stream(self._stage_stream):
            on_device = self._upload(pixels)
            squares = on_device.view(channels, rows, side, cols, side).permute(1, 3, 0, 2, 4)
            patches = squares.reshape(rows * cols, -1).to(self.dtype)
            positions = torch.stack(
                torch.meshgrid(
                    torch.arange(rows, device=self.device),
                    torch.arange(cols, device=self.device),
                    indexing="ij",
                )
            ).flatten(1)
        if self._stage_stream is not None:
            self._stage_stream.synchronize()
        return Staged(patches, positions, rows, cols)

    def embed(self, images: Sequence[Staged]) -> list[Tensor]:
        """Embeds images of any sizes, one or more. It blocks until the device has finished.

        Returns:
            (tokens, width) for each image, in the embeddings' dtype, on the tower's device.
        """
        return self.begin(images)()

    @torch.inference_mode()
    def begin(self, images: Sequence[Staged]) -> Callable[[], list[Tensor]]:
        """Starts to embed images as `embed` does. On a GPU, it returns when the commands are sent.

        Returns:
            A function that blocks until the device has finished, and returns the embeddings. Any
            thread may call it.
        """
        lengths = [image.rows * image.cols for image in images]
        order = self._attention.order(lengths)
        packed = [images[at] for at in order]
        x = self._run(packed)
        if self._projector_norm is not None:
            x = layers.rms_norm(x, self._projector_norm)
        parts = torch.split(x, [lengths[at] for at in order])
        if self._merging_layer is not None:
            x = F.linear(self._squares(parts, packed), self._merging_layer)
            lengths = [length // self._spec.merge_size**2 for length in lengths]
            parts = torch.split(x, [lengths[at] for at in order])
        parts = tuple(part.to(self._embedding_dtype) for part in parts)
        by_place = dict(zip(order, parts, strict=True))
        embeddings = [by_place[at] for at in range(len(images))]
        if self.device.type != "cuda":
            return lambda: embeddings
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))

        def wait() -> list[Tensor]:
            done.synchronize()
            return embeddings

        return wait

    @torch.inference_mode()
    def fetch(self, embedding: Tensor) -> Tensor:
        """Copies an embedding that `embed` returned to the CPU. It blocks.

        Raises:
            ValueError: if one of its numbers is not finite.
        """
        with torch.cuda.stream(self._fetch_stream):
            if not bool(torch.isfinite(embedding).all()):
                raise ValueError("the embedding is not finite")
            if self._fetch_stream is None:
                return embedding
            # Without pinned memory, torch would copy in small pieces, which is slower.
            fetched = torch.empty(embedding.shape, dtype=embedding.dtype, pin_memory=True)
            fetched.copy_(embedding, non_blocking=True)
            embedding.record_stream(self._fetch_stream)
            self._fetch_stream.synchronize()
        return fetched

    def _upload(self, pixels: NDArray[np.float32]) -> Tensor:
        if self._stage_stream is None:
            return torch.from_numpy(np.ascontiguousarray(pixels))
        pinned = torch.empty(pixels.shape, dtype=torch.float32, pin_memory=True)
        # NumPy copies in this thread alone. torch would start a team of threads for every thread
        # that copies.
        np.copyto(pinned.numpy(), pixels)
        return pinned.to(self.device, non_blocking=True)

    def _run(self, images: Sequence[Staged]) -> Tensor:
        """(patches, width) from the last layer. The images are packed in the given order."""
        patches = [image.patches for image in images]
        positions = [image.positions for image in images]
        if self._stage_stream is not None:
            # Another stream allocated these tensors. It must not reuse their memory before this
            # stream has read them.
            for tensor in (*patches, *positions):
                tensor.record_stream(torch.cuda.current_stream(self.device))
        parts = [
            self._run_at_once(patches[some], positions[some])
            for some in self._runs([len(each) for each in patches])
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _runs(self, lengths: Sequence[int]) -> Iterable[slice]:
        if self._graphs is not None:
            return runs(lengths, MOST_PATCHES, MOST_IMAGES, self._graphs.singles)
        if self.device.type == "cpu":
            return runs(lengths, MOST_PATCHES_ON_CPU)
        return [slice(None)]

    def _run_at_once(self, patches: Sequence[Tensor], positions: Sequence[Tensor]) -> Tensor:
        if self._graphs is not None:
            replayed = self._graphs.run(patches, positions)
            if replayed is not None:
                return replayed
        packing = self._attention.pack([len(each) for each in patches])
        with self._attention.kernels():
            return self._all_layers(
                torch.cat(list(patches)), torch.cat(list(positions), dim=1), packing
            )

    def _all_layers(self, patches: Tensor, positions: Tensor, packing: Packing) -> Tensor:
        rotations = self._rotations(positions)
        first, *rest = self._layers
        x, heads = self._enter(patches, self._patch_conv, self._ln_pre, first, rotations)
        for layer, following in zip(self._layers, rest, strict=False):
            x, heads = self._step(x, self._attention(heads, packing), layer, following, rotations)
        return self._leave(x, self._attention(heads, packing), self._layers[-1])

    def _rotations(self, positions: Tensor) -> Rotations:
        """The rotations of patches at `positions`. The first half of a head's pairs turns with the
        row, at the even frequencies; the second half turns with the column, at the odd ones."""
        rows, cols = positions.float()
        by_row = torch.outer(rows, self._frequencies[0::2])
        by_col = torch.outer(cols, self._frequencies[1::2])
        angles = torch.cat([by_row, by_col], dim=-1).view(len(rows), 1, 1, -1)
        return Rotations(angles.cos(), angles.sin())

    def _squares(self, parts: Sequence[Tensor], images: Sequence[Staged]) -> Tensor:
        """One row for each square of patches that the merger joins. Within a row, channels are
        outermost, as in torch's unfold."""
        side = self._spec.merge_size
        squares = [
            part.view(image.rows // side, side, image.cols // side, side, -1)
            .permute(0, 2, 4, 1, 3)
            .reshape(len(part) // side**2, -1)
            for part, image in zip(parts, images, strict=True)
        ]
        return torch.cat(squares)


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _as_it_is(matrix: Tensor) -> Tensor:
    return matrix


def _layer_prefix(index: int) -> str:
    return f"vision_encoder.transformer.layers.{index}"
