"""CUDA graphs of the tower's layers.

A thread needs more time to start the kernels of a run one by one than an H100 needs to compute an
image, and still more while other threads decode images. A graph starts all kernels at once. Once a
run fills the GPU, more images in the run do not make it faster, so graphs up to the size of a large
image are enough.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from pixtral_encoder.tower.attention import Packing

# The layers, which a graph replays. Their arguments are patches (patches, channels * patch size²),
# positions (2, patches) and how the images are packed; their result is (patches, width).
Layers = Callable[[Tensor, Tensor, Packing], Tensor]

MOST_PATCHES = 4096
MOST_IMAGES = 64
SMALL = (64, 128, 256, 512)


def sizes() -> list[int]:
    """The sizes in patches of the graphs for any images. If the images have fewer patches than the
    graph, the rest is padding."""
    return [*SMALL, *range(1024, MOST_PATCHES + 1, 512)]


@dataclass(frozen=True, slots=True)
class Ragged:
    """A graph for any images; it reads from `ends` where each image ends."""

    graph: torch.cuda.CUDAGraph
    ends: Tensor


class Graphs:
    """Records the layers once for each size, and replays them.

    All graphs share the same memory, so one runs at a time, on one thread.
    """

    def __init__(self, run: Layers, *, width: int, patch: int, like: Tensor) -> None:
        """`patch` is the count of numbers in a patch before the layers, `width` after them. The
        graphs use the dtype and the device of `like`."""
        self._run = run
        self._patches = like.new_zeros(MOST_PATCHES, patch)
        self._positions = torch.zeros(2, MOST_PATCHES, dtype=torch.int64, device=like.device)
        self._out = like.new_zeros(MOST_PATCHES, width)
        self._pool = torch.cuda.graph_pool_handle()
        self.singles: dict[int, torch.cuda.CUDAGraph] = {}
        self._ragged: dict[int, Ragged] = {}

    def record(self, lengths: Sequence[int]) -> None:
        """Records graphs for single images of `lengths`, and for any images. It blocks."""
        for length in lengths:
            if length <= MOST_PATCHES:
                self.singles[length] = self._record(length, Packing(((1, length),)))
        for size in sizes():
            ends = torch.full((MOST_IMAGES + 1,), size, dtype=torch.int32, device=self._out.device)
            self._ragged[size] = Ragged(self._record(size, Packing((), ends, size)), ends)

    def run(self, images: Sequence[Tensor], positions: Sequence[Tensor]) -> Tensor | None:
        """The result of the layers for the patches of `images`, (patches, width); None if they have
        more patches than the largest graph. There may be at most MOST_IMAGES images."""
        lengths = [len(image) for image in images]
        total = sum(lengths)
        if total > MOST_PATCHES:
            return None
        if len(images) == 1 and total in self.singles:
            graph = self.singles[total]
        else:
            ragged = self._ragged[min(size for size in self._ragged if size >= total)]
            # The graph always computes MOST_IMAGES images. The missing ones are empty, so no image
            # contains the padding.
            ends = [0, *accumulate(lengths)]
            ends += [total] * (MOST_IMAGES + 1 - len(ends))
            ragged.ends.copy_(torch.tensor(ends, dtype=torch.int32), non_blocking=True)
            graph = ragged.graph
        torch.cat(list(images), out=self._patches[:total])
        torch.cat(list(positions), dim=1, out=self._positions[:, :total])
        graph.replay()
        return self._out[:total].clone()

    def _record(self, patches: int, packing: Packing) -> torch.cuda.CUDAGraph:
        def run() -> None:
            self._out[:patches].copy_(
                self._run(self._patches[:patches], self._positions[:, :patches], packing)
            )

        # The first run of a shape makes allocations that are not allowed while a graph is recorded.
        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        return graph
