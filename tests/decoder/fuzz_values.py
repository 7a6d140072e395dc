"""Values for Redis: whole embeddings, and what must never pass for one."""

import math
import random
import struct

import torch

from pixtral_core.cache import wire_format
from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.cache.wire_format import DType, Embedding
from pixtral_core.model.vision_spec import Grid


class Values:
    """Random ones, for a model of that width and dtype."""

    def __init__(self, rng: random.Random, width: int, dtype: DType) -> None:
        self._rng = rng
        self._width = width
        self._dtype = dtype

    def good(
        self, key: EmbeddingKey, grid: Grid, width: int = 0, dtype: DType | None = None
    ) -> bytes:
        width, dtype = width or self._width, dtype or self._dtype
        generator = torch.Generator().manual_seed(self._rng.getrandbits(32))
        tensor = torch.randn(grid.tokens, width, generator=generator)
        if dtype is DType.BF16:
            tensor = tensor.to(torch.bfloat16)
        data = tensor.view(torch.uint8).numpy().tobytes()
        return wire_format.encode(key, Embedding(grid.rows, grid.cols, width, dtype, data))

    def bad(self, key: EmbeddingKey, grid: Grid) -> bytes | None:
        """None is none at all."""
        rng, good = self._rng, self.good(key, grid)
        match rng.randrange(9):
            case 0:
                return None
            case 1:
                return good[: rng.randrange(len(good))]
            case 2:
                altered = bytearray(good)
                altered[rng.randrange(len(altered))] ^= 1 << rng.randrange(8)
                return bytes(altered)
            case 3:
                return rng.randbytes(rng.choice((0, 1, 63, 64, 65, 5000)))
            case 4:
                return self._not_finite(key, grid, good)
            case 5:
                return self.good(key, grid, width=rng.choice((1, 32, 63, 65, 1024)))
            case 6:
                return self.good(key, Grid(grid.rows + rng.randint(1, 90), grid.cols))
            case 7:
                other = DType.F32 if self._dtype is DType.BF16 else DType.BF16
                return self.good(key, grid, dtype=other)
            case _:
                another = EmbeddingKey(rng.randbytes(32), key.fingerprint, key.scope)
                return self.good(another, grid)

    def _not_finite(self, key: EmbeddingKey, grid: Grid, good: bytes) -> bytes:
        """Whole and with a right checksum, but one of its numbers is none."""
        data = bytearray(wire_format.decode(key, good, width=self._width, dtype=self._dtype).data)
        size = self._dtype.itemsize
        at = self._rng.randrange(len(data) // size) * size
        number = struct.pack("<f", self._rng.choice((math.nan, math.inf, -math.inf)))
        data[at : at + size] = number[4 - size :]
        embedding = Embedding(grid.rows, grid.cols, self._width, self._dtype, bytes(data))
        return wire_format.encode(key, embedding)
