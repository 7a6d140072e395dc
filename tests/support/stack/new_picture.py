"""New images for each test, so that no test finds another's image in a cache."""

import io
import itertools

import numpy as np
from PIL import Image

_numbers = itertools.count(1)


def new_picture(width: int = 96, height: int = 64, form: str = "PNG") -> bytes:
    """An image file that this process has not made before."""
    rng = np.random.default_rng(next(_numbers))
    coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    out = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(out, form)
    return out.getvalue()
