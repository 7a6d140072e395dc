"""An image embedding in memory from which the engine can read."""

import os
from contextlib import suppress
from dataclasses import dataclass

import torch

from pixtral_core.model.vision_spec import Grid
from pixtral_decoder.embeddings.memory_files import MemoryFile


@dataclass(frozen=True, slots=True)
class ImageEmbedding:
    """An embedding that has passed every check.

    Attributes:
        tensor: the embedding, `(tokens, width)`, finite, on the CPU.
        file: the file that contains its memory; None if there is none.
    """

    grid: Grid
    tensor: torch.Tensor
    file: MemoryFile | None = None


def let_go(embeddings: list[ImageEmbedding]) -> None:
    """Runs in a thread: it empties the list, and frees the embeddings that have no other user."""
    descriptors: list[int] = []
    for file in [embedding.file for embedding in embeddings]:
        if file is not None:
            # Without another one it only takes longer.
            with suppress(OSError):
                descriptors.append(os.dup(file.descriptor))
    file = None
    # Unmapping memory blocks Python's lock, and closing a file does not. The last of the two takes
    # most of the time.
    embeddings.clear()
    for descriptor in descriptors:
        os.close(descriptor)
