"""Makes mistral_common encode a prompt from the grids of its images, without their pixels.

Library: mistral-common
Changes: for one instruct tokenizer, the image encoder takes a grid in place of an image, and
    returns the image's number in place of pixels; `decode` returns no text.
Why: mistral_common's own image encoder opens and resizes every image, in the gateway. It also
    decodes every prompt to text, for its own tests, which takes two thirds of the time of an
    encoding. Only the deprecated `Tokenized.text` uses that text.
Upstream: none known
Versions: mistral-common 1.13
"""

from typing import Any

import numpy as np
from mistral_common.protocol.instruct.chunk import ImageChunk, ImageURLChunk
from mistral_common.tokens.tokenizers.base import InstructTokenizer, SpecialTokenPolicy, Tokenized
from mistral_common.tokens.tokenizers.image import (
    ImageConfig,
    ImageEncoder,
    ImageEncoding,
    SpecialImageIDs,
)

from pixtral_core.hooks import Touch, check_touches
from pixtral_core.model.vision_spec import Grid, VisionSpec

_TOKENIZERS = "mistral_common.tokens.tokenizers"
TOUCHES = (
    Touch(
        f"{_TOKENIZERS}.instruct",
        "InstructTokenizerBase.__init__",
        mentions=("image_encoder",),
    ),
    Touch(
        f"{_TOKENIZERS}.instruct",
        "InstructTokenizerV3._encode_content_chunk",
        mentions=("image_encoder",),
    ),
    Touch(
        f"{_TOKENIZERS}.instruct",
        "InstructTokenizerBase.decode",
        parameters=("tokens", "special_token_policy"),
    ),
    Touch(
        f"{_TOKENIZERS}.instruct",
        "InstructTokenizerBase.encode_instruct",
        mentions=("decode",),
    ),
    Touch(f"{_TOKENIZERS}.image", "ImageEncoder.__call__", parameters=("content",)),
    Touch(f"{_TOKENIZERS}.image", "ImageEncoding", parameters=("tokens", "image")),
    Touch(
        f"{_TOKENIZERS}.image",
        "ImageConfig",
        parameters=("image_patch_size", "max_image_size", "spatial_merge_size"),
    ),
    Touch(f"{_TOKENIZERS}.image", "SpecialImageIDs", parameters=("img", "img_break", "img_end")),
    Touch(f"{_TOKENIZERS}.base", "Tokenized", parameters=("tokens", "images")),
    Touch(f"{_TOKENIZERS}.tekken", "Tekkenizer.id_to_byte_piece", parameters=("token_id",)),
)


def check_upstream() -> None:
    """Raises HookBroken if mistral_common has changed."""
    check_touches(__name__, TOUCHES)


def leave_out_pixels(instruct: InstructTokenizer[Any, Any, Any], spec: VisionSpec) -> None:
    """Makes `instruct` take chunks of `chunk_of` as images, and return tokens without text.

    Raises HookBroken if mistral_common has changed.
    """
    check_upstream()
    instruct.image_encoder = _GridEncoder(spec)
    instruct.decode = _spell_nothing  # type: ignore[method-assign]


def chunk_of(grid: Grid, number: int) -> ImageURLChunk:
    """The chunk that represents an image in a message. `numbers` returns its number."""
    return ImageURLChunk(image_url=f"{grid.rows}x{grid.cols}x{number}")


def numbers(tokenized: Tokenized) -> list[int]:
    """The numbers of a prompt's images, in the prompt's order."""
    return [int(image[0]) for image in tokenized.images]


class _GridEncoder(ImageEncoder):
    """Replaces mistral_common's image encoder: a chunk has the image's grid and number."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__(
            ImageConfig(spec.patch_size, spec.max_image_size, spec.merge_size), _image_ids(spec)
        )
        self._spec = spec

    def __call__(self, content: ImageChunk | ImageURLChunk) -> ImageEncoding:
        if not isinstance(content, ImageURLChunk):
            raise TypeError("the gateway's prompts contain grids only")
        rows, cols, number = map(int, content.get_url().split("x"))
        tokens = self._spec.placeholder(Grid(rows, cols))
        return ImageEncoding(tokens=tokens, image=np.array([number]))


def _spell_nothing(tokens: list[int], special_token_policy: SpecialTokenPolicy) -> str:
    return ""


def _image_ids(spec: VisionSpec) -> SpecialImageIDs:
    return SpecialImageIDs(
        img=spec.image_token_id,
        img_break=spec.image_break_token_id,
        img_end=spec.image_end_token_id,
    )
