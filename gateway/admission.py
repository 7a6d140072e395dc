"""How many requests run at once, and a refusal at once for more."""

from collections.abc import Iterator, Sized
from contextlib import contextmanager

from gateway.metrics import PERMITS, PERMITS_LIMIT
from gateway.tenants import Tenant
from serving.errors import Overloaded


class Admission:
    """`limit` permits; a request holds one until its last byte is sent or given up.

    Where there are several tenants, the last quarter of the permits is for those that hold less
    than an equal share of all: one that floods the gateway leaves room for the others.
    """

    def __init__(self, limit: int, tenants: Sized) -> None:
        self._limit = limit
        self._tenants = tenants
        self._in_use = 0
        PERMITS_LIMIT.set(limit)

    @property
    def in_use(self) -> int:
        return self._in_use

    @contextmanager
    def permit(self, tenant: Tenant, images: int) -> Iterator[None]:
        """For a request with so many images. Raises Overloaded where all permits are in use, or
        all that are the tenant's: nothing ever waits here."""
        if self._in_use >= self._limit or self._has_its_share(tenant):
            raise Overloaded("as many requests as this gateway takes are running")
        with tenant.request(images):
            self._in_use += 1
            PERMITS.inc()
            try:
                yield
            finally:
                self._in_use -= 1
                PERMITS.dec()

    def _has_its_share(self, tenant: Tenant) -> bool:
        if len(self._tenants) == 1:
            return False
        is_last_quarter = self._limit - self._in_use <= self._limit // 4
        return is_last_quarter and tenant.in_use >= self._limit // len(self._tenants)
