"""An engine's input from token ids and image embeddings, past vLLM's multimodal processor."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from vllm.inputs import mm_input, tokens_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)

from embeddings.key import EmbeddingKey
from embeddings.vision import Grid
from services.decoder.model import EMBEDDING_FIELD

MODALITY = "image"


@dataclass(frozen=True, slots=True)
class ImagePlace:
    """An image and where it stands in the prompt: `grid.placeholder_length` tokens at `offset`."""

    key: EmbeddingKey
    offset: int
    grid: Grid

    @property
    def identity(self) -> str:
        """What the image is called in vLLM's caches.

        With its grid: what is cached under a name can then never meet placeholders of another
        size, which would end the engine.
        """
        return f"{self.key.identity}-{self.grid.rows}x{self.grid.cols}"


def embedding_item(tensor: torch.Tensor) -> Any:
    """vLLM's form of one image: `(tokens, width)`, before the adapter."""
    element = MultiModalFieldElem(data=tensor, field=MultiModalBatchedField())
    return MultiModalKwargsItem({EMBEDDING_FIELD: element})


def engine_input(
    token_ids: list[int],
    images: Sequence[ImagePlace],
    items: Sequence[Any | None],
    cache_salt: str | None,
) -> Any:
    """What `AsyncLLM.generate` takes.

    `items[i]` is image i's `embedding_item`, or None where the engine holds it already.
    """
    if not images:
        return tokens_input(token_ids, cache_salt=cache_salt)
    return mm_input(
        token_ids,
        mm_kwargs=MultiModalKwargsItems({MODALITY: list(items)}),
        mm_hashes={MODALITY: [image.identity for image in images]},
        mm_placeholders={
            MODALITY: [
                PlaceholderRange(
                    offset=image.offset,
                    length=image.grid.placeholder_length,
                    is_embed=_embedding_mask(image.grid),
                )
                for image in images
            ]
        },
        cache_salt=cache_salt,
    )


@lru_cache(maxsize=1024)
def _embedding_mask(grid: Grid) -> torch.Tensor:
    """True at each [IMG] of the placeholder, False at the tokens that end its rows."""
    mask = torch.ones(grid.rows, grid.cols + 1, dtype=torch.bool)
    mask[:, -1] = False
    return mask.flatten()
