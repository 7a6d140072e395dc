"""Memory that a process holds embeddings in."""

import asyncio
from pathlib import Path

import torch

from pixtral_core.model.vision_spec import Grid
from pixtral_decoder.embeddings.image_embedding import ImageEmbedding
from pixtral_decoder.embeddings.memory_files import MemoryFile

SECONDS = 30.0


def in_a_file(tensor: torch.Tensor) -> ImageEmbedding:
    """As it is when it was received, whatever its size, behind a header."""
    header = 64
    values = tensor.contiguous().flatten().view(torch.uint8)
    file = MemoryFile(header + len(values))
    file.memory[header:] = values
    received = file.memory[header:].view(tensor.dtype).view(tensor.shape)
    return ImageEmbedding(Grid(1, len(tensor)), received, file)


def files() -> list[str]:
    """Those of embeddings that this process has open or mapped."""
    found = Path("/proc/self/maps").read_text().splitlines()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return [each for each in found if "image-embedding" in each]


async def until(count: int) -> None:
    """Waits for `count` files of embeddings in this process; an open, mapped one counts twice."""
    async with asyncio.timeout(SECONDS):
        while len(files()) != count:
            await asyncio.sleep(0.01)
