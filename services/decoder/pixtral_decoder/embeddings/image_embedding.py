"""An image embedding in memory that the engine can read."""

import os
from contextlib import suppress
from dataclasses import dataclass

import torch

from pixtral_core.model.vision_spec import Grid
from pixtral_decoder.embeddings.memory_files import MemoryFile


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


def let_go(embeddings: list[ImageEmbedding]) -> None:
    """In a thread: empties the list, which gives the memory back of those that nobody else has."""
    descriptors: list[int] = []
    for file in [embedding.file for embedding in embeddings]:
        if file is not None:
            # Without another one it only takes longer.
            with suppress(OSError):
                descriptors.append(os.dup(file.descriptor))
    file = None
    # Python's lock is held while memory is unmapped, but not while a file is closed. Whichever is
    # last takes the most of the time.
    embeddings.clear()
    for descriptor in descriptors:
        os.close(descriptor)
