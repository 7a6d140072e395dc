"""CUDA graphs of the tower's layers.

Starting the kernels of a run one by one takes a thread longer than an H100 needs for an image, and
more while other threads decode images. A graph starts at once. More images than fill the card are
no faster together than one after the other, so graphs up to the size of a large image are enough.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from pixtral_encoder.tower.attention import Packing

# (patches, channels * patch size²), positions (2, patches) and how they are packed, to (patches,
# width): the layers, which a graph replays.
Layers = Callable[[Tensor, Tensor, Packing], Tensor]

MOST_PATCHES = 4096
MOST_IMAGES = 64
SMALL = (64, 128, 256, 512)


def sizes() -> list[int]:
    """The sizes of graphs for any images, in patches. The rest of such a graph is padding."""
    return [*SMALL, *range(1024, MOST_PATCHES + 1, 512)]


@dataclass(frozen=True, slots=True)
class Ragged:
    """A graph for any images; it reads `ends`, which has the place of each image."""

    graph: torch.cuda.CUDAGraph
    ends: Tensor


class Graphs:
    """Records the layers once for each size, and replays them.

    All graphs share the same memory, so one runs at a time, on one thread.
    """

    def __init__(self, run: Layers, *, width: int, patch: int, like: Tensor) -> None:
        """`patch` and `width` are the numbers in a patch before and after; the dtype and the device
        are those of `like`."""
        self._run = run
        self._patches = like.new_zeros(MOST_PATCHES, patch)
        self._positions = torch.zeros(2, MOST_PATCHES, dtype=torch.int64, device=like.device)
        self._out = like.new_zeros(MOST_PATCHES, width)
        self._pool = torch.cuda.graph_pool_handle()
        self.singles: dict[int, torch.cuda.CUDAGraph] = {}
        self._ragged: dict[int, Ragged] = {}

    def record(self, lengths: Sequence[int]) -> None:
        """Records graphs for single images of `lengths`, and for any images. Blocking."""
        for length in lengths:
            if length <= MOST_PATCHES:
                self.singles[length] = self._record(length, Packing(((1, length),)))
        for size in sizes():
            ends = torch.full((MOST_IMAGES + 1,), size, dtype=torch.int32, device=self._out.device)
            self._ragged[size] = Ragged(self._record(size, Packing((), ends, size)), ends)

    def run(self, images: Sequence[Tensor], positions: Sequence[Tensor]) -> Tensor | None:
        """The result of the layers for the patches of `images`, (patches, width); None if no
        graph is of their size. They are one of `runs` of up to MOST_PATCHES and MOST_IMAGES."""
        lengths = [len(image) for image in images]
        total = sum(lengths)
        if total > MOST_PATCHES:
            return None
        if len(images) == 1 and total in self.singles:
            graph = self.singles[total]
        else:
            ragged = self._ragged[min(size for size in self._ragged if size >= total)]
            # Missing images end where the last one does, so nothing attends to padding.
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

        # The first run of a shape makes things that may not be made while a graph is recorded.
        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        return graph
