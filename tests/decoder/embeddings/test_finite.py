import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pixtral_core.cache.wire_format import DType
from pixtral_decoder.embeddings.finite import is_finite

BF16 = np.arange(1 << 16, dtype=np.uint16)
F32 = np.concatenate(
    [
        (np.arange(1 << 16, dtype=np.uint32) << 16),
        (np.arange(1 << 16, dtype=np.uint32) << 16) | 0xFFFF,
        np.array([1, 0x7F7F_FFFF, 0x7F80_0001, 0xFF7F_FFFF, 0xFF80_0001], np.uint32),
    ]
)


@pytest.mark.parametrize(
    ("dtype", "torch_dtype", "bits"),
    [(DType.BF16, torch.bfloat16, BF16), (DType.F32, torch.float32, F32)],
    ids=["bf16", "f32"],
)
def test_every_kind_of_value_is_told_as_torch_tells_it(
    dtype: DType, torch_dtype: torch.dtype, bits: NDArray[np.unsignedinteger]
) -> None:
    finite = torch.isfinite(torch.frombuffer(bytearray(bits), dtype=torch_dtype)).numpy()
    assert 0 < np.count_nonzero(~finite) < np.count_nonzero(finite)
    assert is_finite(memoryview(bits[finite].tobytes()), dtype)
    # They have both signs.
    among = np.concatenate([bits[finite][:500], bits[finite][-500:]])
    assert is_finite(memoryview(among.tobytes()), dtype)
    for pattern in bits[~finite]:
        among[500] = pattern
        assert not is_finite(memoryview(among.tobytes()), dtype), hex(pattern)


def test_a_value_that_is_cut_is_not_looked_at() -> None:
    assert is_finite(memoryview(b""), DType.BF16)
    assert is_finite(memoryview(b"\xff"), DType.BF16)
    assert is_finite(memoryview(b"\0\0\0\0\xff\xff\xff"), DType.F32)
    assert not is_finite(memoryview(b"\0\0\xff\xff\xff"), DType.BF16)
