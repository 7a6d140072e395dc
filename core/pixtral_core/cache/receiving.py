"""Buffers for values from Redis, and the work on a value while it arrives."""

import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Generic, Protocol, TypeVar

from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.cache.wire_format import Decoding, DType, Embedding

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# A piece of this size is still in the processor's cache when it is processed.
PIECE_BYTES = 512 << 10


class Receiver(Protocol[T_co]):
    """Receives one value. Its methods run in a thread."""

    def memory(self, size: int) -> memoryview:
        """A buffer of `size` bytes for the value. If a second buffer is requested, the value comes
        again from its beginning."""
        ...

    def piece(self, piece: memoryview) -> None:
        """Takes the next piece, a part of the buffer, while later pieces are on their way."""
        ...

    def end(self, value: memoryview) -> T_co:
        """Takes the whole value, which is in the buffer, and returns the result."""
        ...


class Arrival(ABC, Generic[T]):
    """Makes a result of an embedding. Its methods run in a thread."""

    def memory(self, size: int) -> memoryview:
        """A buffer, as `Receiver.memory` returns it."""
        return new_memory(size)

    def values(self, values: memoryview) -> None:
        """Takes the next piece of the embedding's data, as bytes. The value may later prove
        damaged."""

    @abstractmethod
    def made(self, embedding: Embedding) -> T | None:
        """Takes the whole embedding, which is in the buffer and has passed all checks, and returns
        the result."""


class Receiving(Generic[T]):
    """A `Receiver` of the embedding of `key`; `end` raises DamagedValue as `wire_format.decode`
    does."""

    def __init__(self, key: EmbeddingKey, arrival: Arrival[T], *, width: int, dtype: DType) -> None:
        self._arrival = arrival
        self._anew = partial(Decoding, key, width=width, dtype=dtype)
        self._decoding = self._anew()

    def memory(self, size: int) -> memoryview:
        self._decoding = self._anew()
        return self._arrival.memory(size)

    def piece(self, piece: memoryview) -> None:
        self._arrival.values(self._decoding.piece(piece))

    def end(self, value: memoryview) -> T | None:
        return self._arrival.made(self._decoding.end(value))


def in_pieces(value: memoryview) -> Iterator[memoryview]:
    """The pieces in which a value arrives from Redis."""
    return (value[begin : begin + PIECE_BYTES] for begin in range(0, len(value), PIECE_BYTES))


def new_memory(size: int) -> memoryview:
    """A buffer of zeros. The system allocates its memory when the buffer is written."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
