"""Images for the tower, and how far two embeddings are apart."""

import numpy as np
from mistral_common.tokens.tokenizers.image import transform_image
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pixtral_core.model.vision_spec import VisionSpec
from pixtral_encoder.tower.tower import VisionTower

Pixels = NDArray[np.float32]


def picture(spec: VisionSpec, width: int, height: int, seed: int = 0) -> Pixels:
    """A noise image of that size, as the tower is given it."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return transform_image(Image.fromarray(noise), spec.resized(spec.grid(width, height)))


def relative_error(found: Tensor, reference: Tensor) -> float:
    assert found.shape == reference.shape
    return float((found - reference).norm() / reference.norm())


def embed(tower: VisionTower, images: list[Pixels]) -> list[Tensor]:
    return tower.embed([tower.stage(image) for image in images])
