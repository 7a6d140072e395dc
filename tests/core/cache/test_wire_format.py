import dataclasses
import math
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.cache.wire_format import (
    CHECKSUM,
    HEADER,
    PAYLOAD_OFFSET,
    DamagedValue,
    DType,
    Embedding,
    decode,
    encode,
)

KEY = EmbeddingKey(bytes(range(32)), "0123456789abcdef", "public")


@st.composite
def embeddings(draw: st.DrawFn) -> Embedding:
    rows, cols, width = (draw(st.integers(1, 4)) for _ in range(3))
    dtype = draw(st.sampled_from(DType))
    size = rows * cols * width * dtype.itemsize
    return Embedding(rows, cols, width, dtype, draw(st.binary(min_size=size, max_size=size)))


keys = st.builds(
    EmbeddingKey,
    st.binary(min_size=32, max_size=32),
    st.text("0123456789abcdef", min_size=1, max_size=32),
    st.text("abcxyz-019", min_size=1, max_size=16).filter(lambda s: s.strip("-") != ""),
)


def read(value: bytes, embedding: Embedding, key: EmbeddingKey = KEY) -> Embedding:
    return decode(key, value, width=embedding.width, dtype=embedding.dtype)


@given(keys, embeddings())
def test_what_was_written_is_read(key: EmbeddingKey, embedding: Embedding) -> None:
    found = read(encode(key, embedding), embedding, key)
    assert dataclasses.replace(found, data=bytes(found.data)) == embedding


def test_reading_copies_no_data() -> None:
    value = encode(KEY, Embedding(1, 1, 2, DType.F32, bytes(8)))
    found = decode(KEY, value, width=2, dtype=DType.F32)
    assert isinstance(found.data, memoryview)
    assert found.data.obj is value


def test_every_single_flipped_bit_is_damage() -> None:
    embedding = Embedding(2, 3, 4, DType.BF16, bytes(range(48)))
    value = encode(KEY, embedding)
    for position in range(len(value) * 8):
        flipped = bytearray(value)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(DamagedValue):
            read(bytes(flipped), embedding)


@given(embeddings(), st.data())
def test_a_truncated_value_is_damage(embedding: Embedding, data: st.DataObject) -> None:
    value = encode(KEY, embedding)
    cut = data.draw(st.integers(0, len(value) - 1))
    with pytest.raises(DamagedValue):
        read(value[:cut], embedding)


@given(embeddings(), st.binary(min_size=1, max_size=64))
def test_a_value_with_a_tail_is_damage(embedding: Embedding, tail: bytes) -> None:
    with pytest.raises(DamagedValue):
        read(encode(KEY, embedding) + tail, embedding)


@given(embeddings(), keys, keys)
def test_another_keys_value_is_damage(
    embedding: Embedding, key: EmbeddingKey, other: EmbeddingKey
) -> None:
    value = encode(key, embedding)
    if key == other:
        assert read(value, embedding, other)
    else:
        with pytest.raises(DamagedValue):
            read(value, embedding, other)


@given(embeddings())
def test_another_dtype_or_width_is_damage(embedding: Embedding) -> None:
    value = encode(KEY, embedding)
    other = DType.F32 if embedding.dtype is DType.BF16 else DType.BF16
    with pytest.raises(DamagedValue):
        decode(KEY, value, width=embedding.width, dtype=other)
    with pytest.raises(DamagedValue):
        decode(KEY, value, width=embedding.width + 1, dtype=embedding.dtype)


@given(st.binary(max_size=256))
def test_arbitrary_bytes_are_damage(value: bytes) -> None:
    with pytest.raises(DamagedValue):
        decode(KEY, value, width=1, dtype=DType.F32)


def test_a_header_that_checks_out_over_a_wrong_shape_is_damage() -> None:
    # Only a writer with a bug makes these: the checksum is right, the numbers are not.
    good = encode(KEY, Embedding(2, 2, 1, DType.F32, bytes(16)))
    for rows, cols in ((0, 4), (3, 2), (2**32 - 1, 2**32 - 1)):
        with pytest.raises(DamagedValue):
            decode(KEY, _resealed(good, rows, cols), width=1, dtype=DType.F32)


@pytest.mark.parametrize("shape", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (2, 1, 1)])
def test_an_embedding_fits_its_data(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="embedding"):
        Embedding(*shape, DType.BF16, bytes(2))


def test_an_image_of_pixtral_12b_takes_what_the_design_says() -> None:
    embedding = Embedding(64, 64, 1024, DType.BF16, bytes(64 * 64 * 1024 * 2))
    overhead = len(encode(KEY, embedding)) - embedding.nbytes
    assert overhead == PAYLOAD_OFFSET < 100
    assert math.isclose(embedding.nbytes / 1e6, 8.4, abs_tol=0.05)


def _resealed(value: bytes, rows: int, cols: int) -> bytes:

    fields = list(HEADER.unpack(value[: HEADER.size]))
    fields[2:4] = rows, cols
    header = HEADER.pack(*fields)
    payload = value[PAYLOAD_OFFSET:]
    return header + CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(header))) + payload
