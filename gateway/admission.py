"""How many requests run at once, and a refusal at once for more."""

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.metrics import PERMITS, PERMITS_LIMIT
from serving.errors import Overloaded


class Admission:
    """`limit` permits; a request holds one until its last byte is sent or given up."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_use = 0
        PERMITS_LIMIT.set(limit)

    @property
    def in_use(self) -> int:
        return self._in_use

    @contextmanager
    def permit(self) -> Iterator[None]:
        """Raises Overloaded where all permits are in use: nothing ever waits here."""
        if self._in_use >= self._limit:
            raise Overloaded("as many requests as this gateway takes are running")
        self._in_use += 1
        PERMITS.inc()
        try:
            yield
        finally:
            self._in_use -= 1
            PERMITS.dec()
