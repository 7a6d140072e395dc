"""How many requests run at once, and a refusal at once for more."""

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.metrics import PERMITS, PERMITS_LIMIT
from serving.errors import InvalidRequest, Overloaded


class Admission:
    """`limit` permits; a request holds one for each of its answers until its last byte is sent or
    given up."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_use = 0
        PERMITS_LIMIT.set(limit)

    @property
    def in_use(self) -> int:
        return self._in_use

    @contextmanager
    def permit(self, answers: int = 1) -> Iterator[None]:
        """Raises Overloaded where too few permits are left: nothing ever waits here."""
        if answers > self._limit:
            raise InvalidRequest("sampling.n", f"this gateway gives at most {self._limit} answers")
        if self._in_use + answers > self._limit:
            raise Overloaded("as many requests as this gateway takes are running")
        self._in_use += answers
        PERMITS.inc(answers)
        try:
            yield
        finally:
            self._in_use -= answers
            PERMITS.dec(answers)
