"""The binary format of an image embedding, in Redis and between encoder and decoder.

It has a fixed header and the raw little-endian numbers. A value that fails any check is damaged,
and no reader uses any part of it.
"""

import struct
from dataclasses import dataclass
from enum import StrEnum

# The CRC-32 of Python's own zlib is several times slower.
from zlib_ng import zlib_ng

from pixtral_core.cache.embedding_key import EmbeddingKey

Buffer = bytes | bytearray | memoryview

MAGIC = b"PXE1"
# magic, dtype code, rows, cols, width, payload length, key digest; the CRC-32 of these and of
# the payload follows.
HEADER = struct.Struct("<4sIIIIQ32s")
CHECKSUM = struct.Struct("<I")
PAYLOAD_OFFSET = HEADER.size + CHECKSUM.size


class DType(StrEnum):
    """The type of an embedding's stored numbers."""

    BF16 = "bf16"
    F32 = "f32"

    @property
    def itemsize(self) -> int:
        return _ITEMSIZE[self]


_ITEMSIZE = {DType.BF16: 2, DType.F32: 4}
_CODES = {DType.BF16: 1, DType.F32: 2}


class DamagedValue(ValueError):
    """The value is not the requested embedding. The message quotes no part of the value."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """One image's embedding: the tensor after the patch merger and before the vision-language
    adapter.

    Attributes:
        rows: rows of image tokens.
        cols: columns of image tokens.
        width: values of each token.
        dtype: how each value is stored.
        data: rows * cols * width values of `dtype`, row by row, little-endian.
    """

    rows: int
    cols: int
    width: int
    dtype: DType
    data: Buffer

    def __post_init__(self) -> None:
        if min(self.rows, self.cols, self.width) < 1:
            raise ValueError("an embedding has at least one row, column and value")
        if self.nbytes != self.rows * self.cols * self.width * self.dtype.itemsize:
            raise ValueError("an embedding's data does not fit its shape")

    @property
    def nbytes(self) -> int:
        return memoryview(self.data).nbytes


def encode(key: EmbeddingKey, embedding: Embedding) -> bytes:
    header = HEADER.pack(
        MAGIC,
        _CODES[embedding.dtype],
        embedding.rows,
        embedding.cols,
        embedding.width,
        embedding.nbytes,
        key.digest,
    )
    checksum = zlib_ng.crc32(embedding.data, zlib_ng.crc32(header))
    return b"".join((header, CHECKSUM.pack(checksum), embedding.data))


def decode(key: EmbeddingKey, value: Buffer, *, width: int, dtype: DType) -> Embedding:
    """The embedding of `key` in a complete value. Raises DamagedValue as `Decoding.end` does."""
    view, decoding = memoryview(value).cast("B"), Decoding(key, width=width, dtype=dtype)
    decoding.piece(view)
    return decoding.end(view)


class Decoding:
    """Reads the embedding of `key` from a value that comes in pieces, without copying its data."""

    def __init__(self, key: EmbeddingKey, *, width: int, dtype: DType) -> None:
        self._key = key
        self._width = width
        self._dtype = dtype
        # The checksum of the pieces so far.
        self._checksum: int | None = None

    def piece(self, piece: memoryview) -> memoryview:
        """Takes the next piece, as bytes; the first piece has at least the header. Returns the
        piece's part of the data."""
        if self._checksum is None:
            self._checksum = zlib_ng.crc32(piece[: HEADER.size])
            piece = piece[PAYLOAD_OFFSET:]
        self._checksum = zlib_ng.crc32(piece, self._checksum)
        return piece

    def end(self, value: memoryview) -> Embedding:
        """Returns the embedding in `value`, which consists of all pieces.

        Raises:
            DamagedValue: if the value is truncated, altered, another key's, or not of the width and
                dtype that the caller's model has.
        """
        if len(value) < PAYLOAD_OFFSET:
            raise DamagedValue("shorter than its header")
        header, payload = value[: HEADER.size], value[PAYLOAD_OFFSET:]
        magic, code, rows, cols, width, length, digest = HEADER.unpack(header)
        if magic != MAGIC:
            raise DamagedValue("not an embedding")
        if length != len(payload):
            raise DamagedValue("its length is not that in its header")
        (checksum,) = CHECKSUM.unpack(value[HEADER.size : PAYLOAD_OFFSET])
        if checksum != self._checksum:
            raise DamagedValue("checksum differs")
        if digest != self._key.digest:
            raise DamagedValue("belongs to another key")
        if code != _CODES[self._dtype] or width != self._width:
            raise DamagedValue("has another dtype or width")
        try:
            return Embedding(rows, cols, width, self._dtype, payload)
        except ValueError:
            raise DamagedValue("data does not fit its shape") from None
