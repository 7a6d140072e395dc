"""Admits answers to the engine and to the queue before it.

The longest wait bounds the length of the queue.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from pixtral_core.concurrency.queue_shares import is_within_share
from pixtral_core.errors import Overloaded
from pixtral_decoder.metrics import ADMITTED, ADMITTED_LIMIT

# A sample of this age counts a third as much as a new one.
MEMORY_SECONDS: Final = 30.0
# A newly measured rate has few samples. The rate that follows from the run time of an answer weighs
# as much as this many seconds of samples.
PRIOR_SECONDS: Final = 1.0
# Each waiting answer keeps its prompt in memory.
MOST_WAITING: Final = 10_000
MOST_RETRY_SECONDS: Final = 60


class WaitingQueue:
    """Counts the answers that run and wait, and estimates the next one's wait.

    The engine runs `max_running` answers at once. A new answer waits until as many answers as are
    ahead of it have ended. The queue measures the rate at which answers end while others wait. At
    first it derives the rate from the time that an answer runs. Until the first answer has ended,
    as many answers may wait as run. A tenant with less than its share of the queue has a quarter
    more room.

    Attributes:
        admitted: answers that run or wait.
    """

    def __init__(
        self,
        max_running: int,
        max_wait_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.admitted = 0
        self._tenants: Counter[str] = Counter()
        self._max_running = max_running
        self._max_seconds = max_wait_seconds
        self._clock = clock
        self._looked_at = clock()
        # The number of answers that ended while others waited, and the seconds in which they ended.
        # Old samples fade.
        self._ended = self._seconds = 0.0
        # The moving mean of the seconds that an answer runs.
        self._run_seconds: float | None = None
        ADMITTED_LIMIT.set(self.capacity)

    @property
    def capacity(self) -> int:
        """How many answers may currently run and wait."""
        return self._max_running + self._most_waiting(self._rate())

    def enter(self, answers: int, tenant: str = "") -> None:
        """Admits this many answers of one request. A request that is alone always gets in.

        Raises Overloaded if the answers would wait too long.
        """
        rate = self._rate()
        ahead = self.admitted + answers - self._max_running
        most = self._most_waiting(rate)
        is_full = self.admitted and ahead > most
        if is_full and not is_within_share(
            self._tenants, tenant, answers, self._max_running + most
        ):
            # Whole seconds, so that most refusals have the same message.
            retry = math.ceil(ahead / rate - self._max_seconds) if rate else 0
            raise Overloaded(
                "the decoder's queue is full: an answer would wait longer than "
                f"{self._max_seconds:g} s",
                float(min(max(1, retry), MOST_RETRY_SECONDS)),
            )
        self._tenants[tenant] += answers
        self._count(answers)

    def leave(self, answers: int, run_seconds: float | None, tenant: str = "") -> None:
        """Removes this many answers, which ran for `run_seconds`; None means that they never
        ran."""
        if run_seconds is not None:
            self._look()
            if self.admitted > self._max_running:
                self._ended += answers
            known = self._run_seconds
            # Each ended answer weighs about as much as one of all answers that run at once.
            part = 1.0 if known is None else answers / (self._max_running + answers)
            self._run_seconds = run_seconds * part + (known or 0.0) * (1 - part)
        self._tenants[tenant] -= answers
        if not self._tenants[tenant]:
            del self._tenants[tenant]
        self._count(-answers)

    def _count(self, answers: int) -> None:
        self._look()
        self.admitted += answers
        ADMITTED.set(self.admitted)
        ADMITTED_LIMIT.set(self.capacity)

    def _look(self) -> None:
        now = self._clock()
        passed, self._looked_at = now - self._looked_at, now
        if self.admitted > self._max_running:
            fading = math.exp(-passed / MEMORY_SECONDS)
            self._ended *= fading
            self._seconds = self._seconds * fading + MEMORY_SECONDS * (1 - fading)

    def _rate(self) -> float | None:
        """How many answers end in a second while others wait; None until an answer has ended."""
        self._look()
        if self._run_seconds is None:
            return None
        before = PRIOR_SECONDS * self._max_running / max(self._run_seconds, 1e-3)
        return (self._ended + before) / (self._seconds + PRIOR_SECONDS)

    def _most_waiting(self, rate: float | None) -> int:
        if not self._max_seconds:
            return 0
        if rate is None:
            return self._max_running
        return min(int(rate * self._max_seconds), MOST_WAITING)
