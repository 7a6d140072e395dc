"""Pictures that no two tests share, so that what one has cached surprises no other."""

import io
import itertools

import numpy as np
from PIL import Image

_numbers = itertools.count(1)


def new_picture(width: int = 96, height: int = 64, form: str = "PNG") -> bytes:
    """An encoded picture that was never made before in this process."""
    rng = np.random.default_rng(next(_numbers))
    coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    out = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(out, form)
    return out.getvalue()
