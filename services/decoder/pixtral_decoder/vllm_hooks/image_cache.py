"""Tracks which images the engine's process has, so that the decoder sends an embedding once.

Library: vLLM
Changes: nothing; it reads and updates the frontend's record of the engine's image cache, as vLLM's
    own multimodal processor does.
Why: embeddings bypass that processor. vLLM's official InputProcessor.inject_into_mm_cache ignores
    an image without data, so that the frontend and the engine drop images in different orders, and
    the record becomes wrong. After any exception it also continues as if there were no cache. If
    the record is wrong, vLLM fails the request, and 0.32 also repairs the record
    (mm_cache_miss_hashes). The decoder then sends all images of the request again.
Upstream: https://github.com/vllm-project/vllm/pull/46747
Versions: vLLM 0.25.1 to 0.33.0
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pixtral_core.hooks import Touch, check_touches

if TYPE_CHECKING:
    from vllm.multimodal.inputs import MultiModalKwargsItem
    from vllm.v1.engine.async_llm import AsyncLLM

_CACHE = "vllm.multimodal.cache"
TOUCHES = (
    Touch("vllm.renderers.base", "BaseRenderer.mm_processor_cache"),
    Touch("vllm.v1.engine.async_llm", "AsyncLLM.__init__", mentions=("renderer",)),
    Touch(_CACHE, "BaseMultiModalProcessorCache.is_cached_item", parameters=("mm_hash",)),
    Touch(_CACHE, "BaseMultiModalProcessorCache.touch_sender_cache_item", parameters=("mm_hash",)),
    Touch(
        _CACHE,
        "BaseMultiModalProcessorCache.get_and_update_item",
        parameters=("mm_item", "mm_hash"),
    ),
)


class Record(Protocol):
    """The part of vLLM's BaseMultiModalProcessorCache that this hook touches."""

    def is_cached_item(self, mm_hash: str) -> bool: ...

    def touch_sender_cache_item(self, mm_hash: str) -> None: ...

    def get_and_update_item(
        self, mm_item: "tuple[MultiModalKwargsItem, Sequence[Any]] | None", mm_hash: str
    ) -> "tuple[MultiModalKwargsItem | None, Sequence[Any]]": ...


def check_upstream() -> None:
    """Raises HookBroken if vLLM has changed."""
    check_touches(__name__, TOUCHES)


class ImageCache:
    """The record of one engine's image cache. Only one event loop may use it.

    The engine's process updates its cache in the order in which requests reach it. So the caller
    must not await anything between `sent` and the sending of the request.
    """

    def __init__(self, record: Record | None) -> None:
        """`record` is None if the engine caches no image."""
        self._record = record

    @classmethod
    def of(cls, llm: "AsyncLLM") -> "ImageCache":
        return cls(llm.renderer.mm_processor_cache)

    def has(self, name: str) -> bool:
        return self._record is not None and self._record.is_cached_item(name)

    def sent(
        self, names: Sequence[str], items: "Sequence[MultiModalKwargsItem | None]"
    ) -> "list[MultiModalKwargsItem | None] | None":
        """The data to send for a request's images, with None for each image that the engine has.

        `items[i]` is None if the caller has no embedding of image `names[i]`. Returns None if the
        engine lacks such an image, too. The caller then sends no request, although the record
        already counts it. At worst, the decoder later sends an image once more than necessary.
        """
        record = self._record
        if record is None:
            return None if None in items else list(items)
        for name in names:
            # The engine does the same. Known images come first, so that new images do not displace
            # them.
            record.touch_sender_cache_item(name)
        sent: list[MultiModalKwargsItem | None] = []
        for name, item in zip(names, items, strict=True):
            if item is None and not record.is_cached_item(name):
                return None
            sent.append(record.get_and_update_item(None if item is None else (item, []), name)[0])
        return sent

    def sent_again(self, name: str, item: "MultiModalKwargsItem") -> "MultiModalKwargsItem | None":
        """The data to send for an image that the decoder has just sent with another request.

        None if the engine still has the image.
        """
        if self._record is None:
            return item
        given = None if self._record.is_cached_item(name) else (item, ())
        return self._record.get_and_update_item(given, name)[0]
