"""Admission: permits for requests that run, and an immediate refusal of more."""

from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Final

from pixtral_core.concurrency.shared_counts import ALONE, SharedCounts
from pixtral_core.errors import InvalidRequest, Overloaded
from pixtral_gateway.metrics import PERMITS, PERMITS_LIMIT, REQUESTS
from pixtral_gateway.tenancy.tenants import Tenant

MAX_IMAGE_BYTES: Final = 512 << 20


class Permit:
    """A request's right to run, from its admission to its last byte."""

    def __init__(self, admission: "Admission", tenant: Tenant) -> None:
        self._admission = admission
        self._tenant = tenant
        self._held = 0

    def reserve(self, nbytes: int) -> None:
        """Reserves memory for images until the request ends.

        Raises Overloaded where there is none left. A request that runs alone always gets it.
        """
        self._admission.reserve(self._tenant, nbytes)
        self._held += nbytes

    def release(self) -> None:
        self._admission.release_bytes(self._tenant, self._held)


class Admission:
    """Admits requests while there are permits, one for each choice that a request asks for.

    A request has its permits until its last byte is sent or given up, even when `limit` shrinks.
    The images of all running requests take at most `max_image_bytes`; they stay in memory as long
    as one of them may have to be encoded again. Several workers count together, in `counts`: two
    that look at the same moment may both refuse the last permit, and never both give it.

    With several tenants, the last quarter of permits and of bytes is for tenants that use less than
    an equal share, so that a tenant that floods the gateway leaves room for the others.
    """

    def __init__(
        self,
        limit: int,
        tenants: Sized,
        *,
        max_image_bytes: int = MAX_IMAGE_BYTES,
        counts: SharedCounts = ALONE,
    ) -> None:
        self._tenants = tenants
        self._permits = counts.held("permits")
        self._image_bytes = counts.held("image-bytes")
        self._largest = 0
        self._max_image_bytes = max_image_bytes
        self.limit = limit

    @property
    def in_use(self) -> int:
        return self._permits.total

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
        """A permit for a request with so many images and choices.

        Raises Overloaded at once where too few permits are left, or left to this tenant.
        """
        if answers > self._largest:
            most = self._largest
            raise InvalidRequest("sampling.n", f"must be at most {most} on this gateway")
        self._check_room(tenant, answers)
        with tenant.request(images, answers):
            self._permits.add(answers)
            PERMITS.inc(answers)
            permit = Permit(self, tenant)
            try:
                if self.in_use > self._limit:
                    # Another worker has taken the same room at the same time.
                    raise _full()
                yield permit
            finally:
                permit.release()
                self._permits.add(-answers)
                PERMITS.dec(answers)

    def reserve(self, tenant: Tenant, nbytes: int) -> None:
        """Reserves bytes for a request that has a permit. Raises Overloaded."""
        held, own, most = self._image_bytes.total, tenant.image_bytes.total, self._max_image_bytes
        has_share = (
            own
            and len(self._tenants) > 1
            and held + nbytes > most - most // 4
            and own + nbytes > most // len(self._tenants)
        )
        if nbytes and held and (held + nbytes > most or has_share):
            raise Overloaded("the gateway has no memory left for images: try again later")
        self._count_bytes(tenant, nbytes)

    def release_bytes(self, tenant: Tenant, nbytes: int) -> None:
        self._count_bytes(tenant, -nbytes)

    def _count_bytes(self, tenant: Tenant, nbytes: int) -> None:
        self._image_bytes.add(nbytes)
        tenant.image_bytes.add(nbytes)

    def check(self, tenant: Tenant) -> None:
        """Raises Overloaded, and counts the request, where this tenant would be refused.

        It runs before the request's message is received.
        """
        try:
            self._check_room(tenant, 1)
            tenant.check_room()
        except Overloaded as refusal:
            REQUESTS.labels(refusal.code.name).inc()
            raise

    def _check_room(self, tenant: Tenant, answers: int) -> None:
        if self.in_use + answers > self._limit or self._has_its_share(tenant, answers):
            raise _full()

    def _has_its_share(self, tenant: Tenant, answers: int) -> bool:
        if len(self._tenants) == 1:
            return False
        is_last_quarter = self.in_use + answers > self._limit - self._limit // 4
        return is_last_quarter and tenant.in_use + answers > self._limit // len(self._tenants)


def _full() -> Overloaded:
    return Overloaded("the gateway is at its limit of concurrent requests")
