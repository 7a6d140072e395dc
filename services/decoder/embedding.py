"""An image's embedding where the engine can have it."""

from dataclasses import dataclass

import torch

from embeddings.vision import Grid
from services.decoder.memory_files import MemoryFile


@dataclass(frozen=True, slots=True)
class ImageEmbedding:
    """An embedding that has passed every check of its own.

    Attributes:
        tensor: `(tokens, width)`, finite, on the CPU.
        file: that its memory is in, if it is in one.
    """

    grid: Grid
    tensor: torch.Tensor
    file: MemoryFile | None = None
