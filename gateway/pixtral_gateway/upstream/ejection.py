"""Stops using a replica for a while if it answers handshakes but fails or hangs in its work.

Names and numbers are those of Envoy's outlier detection, except one: at most half of the replicas
are left out. Envoy's limit is a tenth, but always at least one replica, even the last one.
"""

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pixtral_gateway.metrics import EJECTIONS

if TYPE_CHECKING:
    from pixtral_gateway.upstream.replica import Replica

logger = logging.getLogger(__name__)

CONSECUTIVE_FAILURES = 5
BASE_EJECTION_SECONDS = 30.0
# The most ejections that count for the length of the next; the longest lasts 300 s.
MOST_EJECTIONS = 10
MAX_EJECTED_SHARE = 0.5


class Record:
    """The outcomes of the calls to one replica.

    Attributes:
        failures: failed calls since the last call that succeeded.
    """

    __slots__ = ("_ejections", "_until", "failures")

    def __init__(self) -> None:
        self.failures = 0
        self._ejections = 0
        self._until = 0.0

    @property
    def is_ejected(self) -> bool:
        return time.monotonic() < self._until

    def eject(self) -> float:
        """Ejects the replica. Returns for how many seconds: more each time, and fewer after a time
        without ejections."""
        now = time.monotonic()
        well = int((now - self._until) / BASE_EJECTION_SECONDS)
        self._ejections = min(max(self._ejections - well, 0) + 1, MOST_EJECTIONS)
        seconds = self._ejections * BASE_EJECTION_SECONDS
        self._until = now + seconds
        self.failures = 0
        return seconds


def failed(replica: "Replica", peers: Iterable["Replica"]) -> None:
    """Counts a call that failed because of the replica.

    Ejects the replica if it fails again and again while another replica does not. A failure of all
    replicas comes from the request, or from a service that all replicas use.
    """
    if replica.contract is None:
        # All calls to a process that has died fail at once, and count once.
        return
    replica.record.failures += 1
    is_alone = any(peer.contract == replica.contract and not peer.record.failures for peer in peers)
    if replica.record.failures >= CONSECUTIVE_FAILURES and is_alone:
        eject(replica, peers, "failures")


def eject(replica: "Replica", peers: Iterable["Replica"], reason: str) -> bool:
    """Leaves the replica out for a while, unless half of its tier is left out already."""
    alike = [peer for peer in peers if peer.announced == replica.announced]
    ejected = sum(peer.record.is_ejected for peer in alike)
    if replica.contract is None or ejected + 1 > MAX_EJECTED_SHARE * len(alike):
        return False
    seconds = replica.record.eject()
    logger.warning("%s %s is left out for %g s: %s", replica.tier, replica.address, seconds, reason)
    EJECTIONS.labels(replica.tier, reason).inc()
    replica.leave_out()
    return True
