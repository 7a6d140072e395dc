"""Logs whether Redis answers: one WARNING for each change, however many requests notice the
change."""

import logging

logger = logging.getLogger(__name__)

_CONNECTION = "connection"


class RedisState:
    """The last state of one Redis, as all connections of a process see it.

    Redis may refuse one kind of operation and do another: a full Redis refuses writes and answers
    reads. So each kind has its own state.
    """

    def __init__(self) -> None:
        self._failing: set[str] = set()

    def answered(self, operation: str) -> None:
        self._ends(_CONNECTION, "Redis answers again")
        self._ends(operation, f"Redis accepts {operation} again")

    def refused(self, operation: str, why: str) -> None:
        """`why` names the error."""
        self._ends(_CONNECTION, "Redis answers again")
        self._begins(operation, f"Redis refuses {operation}: {why}")

    def does_not_answer(self, why: str) -> None:
        self._begins(
            _CONNECTION,
            f"Redis does not answer ({why}): until it does, images are encoded more often, and "
            "decoders fetch embeddings from encoders",
        )

    def _begins(self, what: str, message: str) -> None:
        if what not in self._failing:
            self._failing.add(what)
            logger.warning(message)

    def _ends(self, what: str, message: str) -> None:
        if what in self._failing:
            self._failing.remove(what)
            logger.warning(message)
