"""Decides when to send a failed request again: how often, after how long, and within which budget.

A client repeats a request that the server refused (`Overloaded`) or could not do (`Unavailable`).
It never repeats a request after the user has seen a part of its answer, such as a stream after its
first delta. It waits as long as the server's `RetryInfo` says. Without one, the wait grows from
half a second to eight, as in OpenAI's SDK. Both waits have a random part, so that clients that
failed together do not come back together.

gRPC's own retry policy is not enough: it ignores `RetryInfo`, and it does not repeat requests
larger than its buffer, such as requests with images.
"""

import random
import threading
from collections.abc import Callable
from typing import Any, Final

from pixtral_client.errors import Overloaded, PixtralError, Unavailable
from pixtral_client.sent_images import Outgoing

DEFAULT_MAX_RETRIES: Final = 2
FIRST_WAIT: Final = 0.5
LONGEST_WAIT: Final = 8.0
# The values of gRPC's `retryThrottling`, with the most tokens that it allows.
BUDGET_TOKENS: Final = 1000.0
TOKENS_A_SUCCESS: Final = 0.1


class RetryBudget:
    """The retries that all requests of a client share; safe for any thread.

    A failure takes a token, and a success gives a tenth back. While half of the tokens or fewer are
    left, the client retries nothing, so a service that is down does not get every request three
    times. A failure with a time to retry after takes no token, because the server sets the pace.
    """

    def __init__(self, tokens: float = BUDGET_TOKENS) -> None:
        self._most = self._tokens = tokens
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        with self._lock:
            self._tokens = min(self._most, self._tokens + TOKENS_A_SUCCESS)

    def failed(self) -> None:
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1)

    @property
    def has_room(self) -> bool:
        return self._tokens > self._most / 2


class Tries:
    """The tries of one request.

    Args:
        left: returns the seconds that the request still has.
        most: how often the client may send it again.
        outgoing: the request, if it may name images. If the gateway lacks some of them, the client
            sends the request again at once with their files, which does not count as a retry.
        is_patient: whether refusals for overload do not count as retries; only the time limits
            them.
    """

    def __init__(
        self,
        left: Callable[[], float],
        most: int,
        budget: RetryBudget,
        outgoing: Outgoing[Any] | None = None,
        *,
        is_patient: bool = False,
    ) -> None:
        self.left = left
        self._most = most
        self._budget = budget
        self._outgoing = outgoing
        self._is_patient = is_patient
        self._made = 0

    def answered(self) -> None:
        """Records that the server has begun to answer."""
        self._budget.succeeded()
        if self._outgoing is not None:
            self._outgoing.answered()

    def wait_after(self, error: PixtralError) -> float | None:
        """Seconds to wait before the next try; None if there is no further try."""
        if self._outgoing is not None and self._outgoing.again(error):
            return 0.0
        if not isinstance(error, Overloaded | Unavailable):
            return None
        if error.retry_after is None:
            self._budget.failed()
        is_free = self._is_patient and isinstance(error, Overloaded)
        if not is_free and (self._made >= self._most or not self._budget.has_room):
            return None
        if error.retry_after is None:
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2**self._made) * _random(0.75, 1.0)
        else:
            # Never earlier than the server says.
            wait = error.retry_after * _random(1.0, 1.25)
        self._made += not is_free
        return wait if wait < self.left() else None


def _random(low: float, high: float) -> float:
    return random.uniform(low, high)  # noqa: S311 - no secret
