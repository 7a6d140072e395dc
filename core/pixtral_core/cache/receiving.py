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

# Processed while it is in a processor's cache.
PIECE_BYTES = 512 << 10


class Receiver(Protocol[T_co]):
    """The receiver of one value; called in a thread."""

    def memory(self, size: int) -> memoryview:
        """A buffer of that many bytes. A second call means that the value comes again from its
        beginning."""
        ...

    def piece(self, piece: memoryview) -> None:
        """The next piece is in that memory, while others are on their way."""
        ...

    def end(self, value: memoryview) -> T_co:
        """The whole value is in that memory."""
        ...


class Arrival(ABC, Generic[T]):
    """The result for an embedding; called in a thread."""

    def memory(self, size: int) -> memoryview:
        """As a `Receiver`'s."""
        return new_memory(size)

    def values(self, values: memoryview) -> None:
        """The next piece, as bytes. It may still turn out to be damaged."""

    @abstractmethod
    def made(self, embedding: Embedding) -> T | None:
        """The whole embedding is in that memory, and is the requested one."""


class Receiving(Generic[T]):
    """A `Receiver` of the embedding of `key`; `end` raises DamagedValue as `codec.decode` does."""

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
    """The pieces as they come, if a value is received in pieces."""
    return (value[begin : begin + PIECE_BYTES] for begin in range(0, len(value), PIECE_BYTES))


def new_memory(size: int) -> memoryview:
    """Zeros: the system allocates the memory when it is written."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
