"""Memory that a process holds embeddings in."""

import asyncio
from pathlib import Path

SECONDS = 30.0


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
    """This process has so many files of embeddings, open and mapped ones counted apart."""
    async with asyncio.timeout(SECONDS):
        while len(files()) != count:
            await asyncio.sleep(0.01)
