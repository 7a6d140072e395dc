"""Whether an embedding's values are finite, by their bits."""

from typing import Any

import numpy as np

from embeddings.codec import DType

# An exponent of ones is infinity or no number, and every finite value's bits are below it: as a
# whole number, with the sign for the largest bit, and for those below zero without it. To compare
# whole numbers is what CPUs do fastest: bf16 itself takes three times as long.
_EXPONENT = {DType.BF16: 0x7F80, DType.F32: 0x7F80_0000}
_SIGNED: dict[DType, np.dtype[Any]] = {DType.BF16: np.dtype("<i2"), DType.F32: np.dtype("<i4")}
_UNSIGNED: dict[DType, np.dtype[Any]] = {DType.BF16: np.dtype("<u2"), DType.F32: np.dtype("<u4")}
_SIGN = {DType.BF16: 0x8000, DType.F32: 0x8000_0000}


def is_finite(values: memoryview, dtype: DType) -> bool:
    """Of bytes, little-endian. What ends within a value is looked at up to there.

    Reads them twice, so that pieces that fit into a cache are the fastest.
    """
    whole = values[: len(values) // dtype.itemsize * dtype.itemsize]
    if not whole:
        return True
    signed = np.frombuffer(whole, _SIGNED[dtype])
    unsigned = np.frombuffer(whole, _UNSIGNED[dtype])
    exponent = _EXPONENT[dtype]
    return bool(signed.max() < exponent and unsigned.max() < _SIGN[dtype] + exponent)
