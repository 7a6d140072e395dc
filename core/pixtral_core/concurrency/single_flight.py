"""Runs one piece of work for all callers that request it at the same time."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from pixtral_core.errors import ServingError
from pixtral_core.telemetry.request_log import current_span
from pixtral_core.telemetry.tracing import Span

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Flight(Generic[T]):
    """Work that runs now. `span` is that of the first caller, whose trace contains the work; the
    spans of other callers link to it."""

    task: asyncio.Task[T]
    span: Span
    waiters: int = 0


class SingleFlight(Generic[K, T]):
    """Concurrent calls with one key share the first one's work, and its error.

    The work continues while a caller waits. A caller that is cancelled does not disturb the others,
    and the last one to be cancelled cancels the work.
    """

    def __init__(self) -> None:
        self._flights: dict[K, Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: K) -> bool:
        return key in self._flights

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = Flight(asyncio.create_task(work()), current_span())
            flight.task.add_done_callback(partial(_log_if_lost, flight))
        else:
            current_span().link(flight.span)
        flight.waiters += 1
        try:
            # `asyncio.wait` neither raises the work's error nor cancels the work when this caller
            # is cancelled.
            await asyncio.wait([flight.task])
        finally:
            flight.waiters -= 1
            if flight.task.done() or not flight.waiters:
                self._end(key, flight)
        return flight.task.result()

    def _end(self, key: K, flight: Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        flight.task.cancel()


def _log_if_lost(flight: Flight[Any], done: "asyncio.Task[Any]") -> None:
    """Logs an error that no caller gets. asyncio would report it later, and without its work."""
    error = None if done.cancelled() else done.exception()
    if error is not None and not flight.waiters and not isinstance(error, ServingError):
        logger.warning("work has failed after its callers had left", exc_info=error)
