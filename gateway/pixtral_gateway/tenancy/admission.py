"""Admission: permits for requests that run, and an immediate refusal of more."""

from collections import Counter
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Final

from pixtral_core.errors import InvalidRequest, Overloaded
from pixtral_gateway.metrics import PERMITS, PERMITS_LIMIT, REQUESTS
from pixtral_gateway.tenancy.tenants import Tenant

MAX_IMAGE_BYTES: Final = 512 << 20


class Permit:
    """Of a request that runs."""

    def __init__(self, admission: "Admission", tenant: Tenant) -> None:
        self._admission = admission
        self._tenant = tenant
        self._held = 0

    def hold(self, nbytes: int) -> None:
        """So many more of images, until the request ends. Raises Overloaded where there is no room
        for them; for what is alone there always is."""
        self._admission.hold(self._tenant, nbytes)
        self._held += nbytes

    def release(self) -> None:
        self._admission.give_back(self._tenant, self._held)


class Admission:
    """`limit` permits; a request holds one for each of its answers until its last byte is sent or
    given up. The limit may change: who holds a permit keeps it. Images of the requests that run
    are no more than `max_image_bytes` together: they are kept for as long as one may have to be
    encoded anew.

    Where there are several tenants, the last quarter of the permits, and of the bytes, is for those
    that hold less than an equal share of all: one that floods the gateway leaves room for the
    others.
    """

    def __init__(
        self, limit: int, tenants: Sized, *, max_image_bytes: int = MAX_IMAGE_BYTES
    ) -> None:
        self._tenants = tenants
        self._in_use = 0
        self._largest = 0
        self._max_image_bytes = max_image_bytes
        self._held = Counter[str]()
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
    def permit(self, tenant: Tenant, images: int, answers: int = 1) -> Iterator[Permit]:
        """For a request with so many images that asks for so many answers. Raises Overloaded where
        too few permits are left, or left to this tenant: nothing ever waits here."""
        if answers > self._largest:
            most = self._largest
            raise InvalidRequest("sampling.n", f"this gateway gives at most {most} answers")
        self._check_room(tenant, answers)
        with tenant.request(images, answers):
            self._in_use += answers
            PERMITS.inc(answers)
            permit = Permit(self, tenant)
            try:
                yield permit
            finally:
                permit.release()
                self._in_use -= answers
                PERMITS.dec(answers)

    def hold(self, tenant: Tenant, nbytes: int) -> None:
        """Bytes of a permit's request. Raises Overloaded."""
        held, own, most = self._held.total(), self._held[tenant.name], self._max_image_bytes
        has_share = (
            own
            and len(self._tenants) > 1
            and held + nbytes > most - most // 4
            and own + nbytes > most // len(self._tenants)
        )
        if nbytes and held and (held + nbytes > most or has_share):
            raise Overloaded("as much of images as this gateway holds is with those that run")
        self._held[tenant.name] += nbytes

    def give_back(self, tenant: Tenant, nbytes: int) -> None:
        self._held[tenant.name] -= nbytes
        if not self._held[tenant.name]:
            del self._held[tenant.name]

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
