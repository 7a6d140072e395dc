"""How many requests run at once, and a refusal at once for more."""

from collections.abc import Iterator, Sized
from contextlib import contextmanager

from gateway.metrics import PERMITS, PERMITS_LIMIT, REQUESTS
from gateway.tenants import Tenant
from serving.errors import InvalidRequest, Overloaded


class Admission:
    """`limit` permits; a request holds one for each of its answers until its last byte is sent or
    given up. The limit may change: who holds a permit keeps it.

    Where there are several tenants, the last quarter of the permits is for those that hold less
    than an equal share of all: one that floods the gateway leaves room for the others.
    """

    def __init__(self, limit: int, tenants: Sized) -> None:
        self._tenants = tenants
        self._in_use = 0
        self._largest = 0
        self.limit = limit

    @property
    def in_use(self) -> int:
        return self._in_use

    @property
    def limit(self) -> int:
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self._largest = max(self._largest, limit)
        PERMITS_LIMIT.set(limit)

    @contextmanager
    def permit(self, tenant: Tenant, images: int, answers: int = 1) -> Iterator[None]:
        """For a request with so many images that asks for so many answers. Raises Overloaded where
        too few permits are left, or left to this tenant: nothing ever waits here."""
        if answers > self._largest:
            most = self._largest
            raise InvalidRequest("sampling.n", f"this gateway gives at most {most} answers")
        self._check_room(tenant, answers)
        with tenant.request(images, answers):
            self._in_use += answers
            PERMITS.inc(answers)
            try:
                yield
            finally:
                self._in_use -= answers
                PERMITS.dec(answers)

    def check(self, tenant: Tenant) -> None:
        """Raises Overloaded, and counts the request, where none of this tenant's would be let in:
        to be asked before its message is parsed, or even read."""
        try:
            self._check_room(tenant, 1)
            tenant.check_room()
        except Overloaded as refusal:
            REQUESTS.labels(refusal.code.name).inc()
            raise

    def _check_room(self, tenant: Tenant, answers: int) -> None:
        if self._in_use + answers > self._limit or self._has_its_share(tenant, answers):
            raise Overloaded("as many requests as this gateway takes are running")

    def _has_its_share(self, tenant: Tenant, answers: int) -> bool:
        if len(self._tenants) == 1:
            return False
        is_last_quarter = self._in_use + answers > self._limit - self._limit // 4
        return is_last_quarter and tenant.in_use + answers > self._limit // len(self._tenants)
