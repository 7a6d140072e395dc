"""A least-recently-used cache bounded by bytes."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteLru(Generic[K, V]):
    """Keeps at most `max_bytes` of values. `put` takes the size of each value.

    Not thread-safe: for use from one event loop.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError("max_bytes must not be negative")
        self._max_bytes = max_bytes
        self._nbytes = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, nbytes: int) -> list[V]:
        """Stores the value as the most recently used one, unless it is larger than the bound.

        Returns the values that were removed to make room.
        """
        self.pop(key)
        gone: list[V] = []
        if nbytes > self._max_bytes:
            return gone
        self._entries[key] = (value, nbytes)
        self._nbytes += nbytes
        while self._nbytes > self._max_bytes:
            _, (value, freed) = self._entries.popitem(last=False)
            self._nbytes -= freed
            gone.append(value)
        return gone

    def pop(self, key: K) -> V | None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._nbytes -= entry[1]
        return entry[0]

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries
