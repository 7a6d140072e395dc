"""An engine's input from token ids and image embeddings, without vLLM's multimodal processor."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from vllm.inputs import MultiModalInput, TokensInput, mm_input, tokens_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)

from pixtral_core.model.vision_spec import Grid
from pixtral_decoder.request import Prompt
from pixtral_decoder.vllm_hooks.model import EMBEDDING_FIELD

MODALITY = "image"


def embedding_item(tensor: torch.Tensor) -> MultiModalKwargsItem:
    """vLLM's form of one image.

    `tensor` is the embedding before the adapter, `(tokens, width)`.
    """
    element = MultiModalFieldElem(data=tensor, field=MultiModalBatchedField())
    return MultiModalKwargsItem({EMBEDDING_FIELD: element})


def engine_input(
    prompt: Prompt, items: Sequence[MultiModalKwargsItem | None]
) -> MultiModalInput | TokensInput:
    """The input of `AsyncLLM.generate`.

    `items[i]` is the `embedding_item` of image i, or None if the engine already has the image.
    """
    if not prompt.images:
        return tokens_input(prompt.engine_token_ids, cache_salt=prompt.cache_salt)
    return mm_input(
        prompt.engine_token_ids,
        mm_kwargs=MultiModalKwargsItems({MODALITY: list(items)}),
        mm_hashes={MODALITY: [image.identity for image in prompt.images]},
        mm_placeholders={
            MODALITY: [
                PlaceholderRange(
                    offset=image.offset,
                    length=image.grid.placeholder_length,
                    is_embed=_embedding_mask(image.grid),
                )
                for image in prompt.images
            ]
        },
        cache_salt=prompt.cache_salt,
    )


@lru_cache(maxsize=1024)
def _embedding_mask(grid: Grid) -> torch.Tensor:
    """True at each [IMG] of the placeholder, False at the tokens that end its rows."""
    mask = torch.ones(grid.rows, grid.cols + 1, dtype=torch.bool)
    mask[:, -1] = False
    return mask.flatten()
