"""An engine's input from token ids and image embeddings, without vLLM's multimodal processor."""

from collections.abc import Sequence
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

from pixtral_core.model.vision_spec import Grid
from pixtral_decoder.request import Prompt
from pixtral_decoder.vllm_hooks.model import EMBEDDING_FIELD

MODALITY = "image"


def embedding_item(tensor: torch.Tensor) -> Any:
    """vLLM's form of one image: `(tokens, width)`, before the adapter."""
    element = MultiModalFieldElem(data=tensor, field=MultiModalBatchedField())
    return MultiModalKwargsItem({EMBEDDING_FIELD: element})


def engine_input(prompt: Prompt, items: Sequence[Any | None]) -> Any:
    """What `AsyncLLM.generate` takes.

    `items[i]` is image i's `embedding_item`, or None where the engine holds it already.
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


def send_images_once(llm: Any) -> None:
    """Has the requests that vLLM makes of one with n > 1 carry its images with the first alone.

    They share what they hold of images, and vLLM sends it with each: 8 MB for a large one.
    """
    core, cache = llm.engine_core, llm.renderer.mm_processor_cache
    send = core.add_request_async

    async def send_and_note(request: Any) -> None:
        await send(request)
        for feature in request.mm_features or ():
            if feature.data is not None and cache is not None:
                # What is sent of an image that the engine's process holds by now.
                held = cache.is_cached_item(feature.mm_hash)
                given: Any = None if held else (feature.data, [])
                feature.data, _ = cache.get_and_update_item(given, feature.mm_hash)

    core.add_request_async = send_and_note


@lru_cache(maxsize=1024)
def _embedding_mask(grid: Grid) -> torch.Tensor:
    """True at each [IMG] of the placeholder, False at the tokens that end its rows."""
    mask = torch.ones(grid.rows, grid.cols + 1, dtype=torch.bool)
    mask[:, -1] = False
    return mask.flatten()
