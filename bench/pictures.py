"""Draws images of a photograph's size for measurements, each different."""

import io

import numpy as np
from PIL import Image


def jpeg(seed: int, width: int = 1024, height: int = 1024) -> bytes:
    """A JPEG of smooth random shapes with some grain, about 300 kB at 1024x1024."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = rng.integers(-12, 13, (height, width, 1), dtype=np.int16)
    picture = Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return out.getvalue()
