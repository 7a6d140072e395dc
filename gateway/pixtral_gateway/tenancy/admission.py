"""Admission: permits for running requests, and an immediate refusal of more."""

from collections import Counter
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Final

from pixtral_core.concurrency.shared_counts import ALONE, SharedCounts
from pixtral_core.concurrency.shared_limit import is_room
from pixtral_core.errors import InvalidRequest, Overloaded
from pixtral_gateway.metrics import MEMORY, MEMORY_LIMIT, PERMITS, PERMITS_LIMIT, REQUESTS
from pixtral_gateway.tenancy.tenants import Tenant

MAX_IMAGE_BYTES: Final = 512 << 20
# The bytes for other things than images that a request has without a reservation. Nearly all
# requests need less.
FREE_BYTES: Final = 64 << 10


class Permit:
    """A request's right to run, from its admission to its last byte."""

    def __init__(self, admission: "Admission", tenant: Tenant) -> None:
        self._admission = admission
        self._tenant = tenant
        self._held = 0
        self._beside = 0
        self._covered = FREE_BYTES

    def reserve(self, nbytes: int) -> None:
        """Reserves memory for images until the request ends.

        Raises Overloaded if none is left. A request that runs alone always gets the memory.
        """
        self._admission.reserve(self._tenant, nbytes)
        self._held += nbytes

    def hold(self, nbytes: int) -> None:
        """Counts the request's memory beside images, such as an answer that is gathered. The first
        FREE_BYTES are free, and the rest is reserved. Raises Overloaded as `reserve` does.
        """
        self._beside += nbytes
        if self._beside > self._covered:
            more = max(self._beside - self._covered, FREE_BYTES)
            self.reserve(more)
            self._covered += more

    def release(self) -> None:
        self._admission.release_bytes(self._tenant, self._held)


class Admission:
    """Admits requests while permits are free. Each choice of a request needs one.

    A request has its permits until its last byte is sent or given up, even when `limit` shrinks.
    The images of all running requests, long prompts and gathered answers take at most
    `max_image_bytes`; an image stays in memory while a decoder may still ask for its encoding.
    Several workers count together, in `counts`: two that look at the same moment may both refuse
    the last permit, but never both give it.

    With several tenants, permits and bytes are shared among those that have some; see SharedLimit.
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
        # The permits and the bytes that each tenant has in this worker.
        self._running = Counter[str]()
        self._holding = Counter[str]()
        self._largest = 0
        self._max_image_bytes = max_image_bytes
        self.limit = limit
        MEMORY_LIMIT.labels("running").set(max_image_bytes // counts.processes)

    @property
    def held_bytes(self) -> int:
        """The bytes that running requests have reserved."""
        return self._image_bytes.total

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
        """A permit for a request with this many images and choices.

        Raises Overloaded at once if too few permits are left, or too few for this tenant. Raises
        InvalidRequest for more choices than this gateway can ever admit.
        """
        if answers > self._largest:
            most = self._largest
            raise InvalidRequest("sampling.n", f"must be at most {most} on this gateway")
        self._check_room(tenant, answers)
        with tenant.request(images, answers):
            self._permits.add(answers)
            _count(self._running, tenant, answers)
            PERMITS.inc(answers)
            permit = Permit(self, tenant)
            try:
                if self.in_use > self._limit:
                    # Another worker has taken the same permits at the same time.
                    raise _full()
                yield permit
            finally:
                permit.release()
                self._permits.add(-answers)
                _count(self._running, tenant, -answers)
                PERMITS.dec(answers)

    def reserve(self, tenant: Tenant, nbytes: int) -> None:
        """Reserves bytes for a request that has a permit. Raises Overloaded."""
        held, own = self._image_bytes.total, tenant.image_bytes.total
        parties = max(1, len(self._holding)) if self._has_several else 0
        if nbytes and held and not is_room(self._max_image_bytes, held, own, nbytes, parties):
            raise Overloaded("no memory is left for images and long texts: try again later")
        self._count_bytes(tenant, nbytes)

    def release_bytes(self, tenant: Tenant, nbytes: int) -> None:
        self._count_bytes(tenant, -nbytes)

    def _count_bytes(self, tenant: Tenant, nbytes: int) -> None:
        self._image_bytes.add(nbytes)
        tenant.image_bytes.add(nbytes)
        _count(self._holding, tenant, nbytes)
        MEMORY.labels("running").set(self._image_bytes.own)

    def check(self, tenant: Tenant, *, is_completion: bool = True) -> None:
        """Raises Overloaded if this tenant would be refused, and counts a refused completion.

        It runs before the gateway receives the request's message.
        """
        try:
            self._check_room(tenant, 1)
            tenant.check_room()
        except Overloaded as refusal:
            if is_completion:
                REQUESTS.labels(refusal.code.name).inc()
            raise

    def _check_room(self, tenant: Tenant, answers: int) -> None:
        parties = max(1, len(self._running)) if self._has_several else 0
        if not is_room(self._limit, self.in_use, tenant.in_use, answers, parties):
            raise _full()

    @property
    def _has_several(self) -> bool:
        return len(self._tenants) > 1


def _count(parties: Counter[str], tenant: Tenant, amount: int) -> None:
    parties[tenant.name] += amount
    if not parties[tenant.name]:
        del parties[tenant.name]


def _full() -> Overloaded:
    return Overloaded("the gateway is at its limit of concurrent requests")
