"""An image embedding in memory that the engine can read."""

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
        file: the file in memory that contains the tensor; None if there is none.
    """

    grid: Grid
    tensor: torch.Tensor
    file: MemoryFile | None = None


def let_go(embeddings: list[ImageEmbedding]) -> None:
    """Empties the list, and frees the embeddings that have no other user.

    Call it in a thread, because it takes long.
    """
    descriptors: list[int] = []
    for file in [embedding.file for embedding in embeddings]:
        if file is not None:
            # The second descriptor only saves time, so an error does no harm.
            with suppress(OSError):
                descriptors.append(os.dup(file.descriptor))
    file = None
    # Python's lock is taken while memory is unmapped, and free while a file is closed. The later of
    # the two frees the memory and takes most of the time, so the files are closed last.
    embeddings.clear()
    for descriptor in descriptors:
        os.close(descriptor)
