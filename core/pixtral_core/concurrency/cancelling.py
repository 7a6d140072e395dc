"""Cancels a task for a reason, which the task can read afterwards.

asyncio passes the argument of `task.cancel` on to what the task awaits. A gRPC call drops it: its
CancelledError is a new one. So the reason is kept beside the task.
"""

import asyncio
from typing import Any
from weakref import WeakKeyDictionary

_reasons: WeakKeyDictionary[asyncio.Task[Any], Exception] = WeakKeyDictionary()


def cancel_for(task: asyncio.Task[Any], reason: Exception) -> None:
    """Cancels the task. The first reason counts."""
    task.cancel(_reasons.setdefault(task, reason))


def reason_of(cancelled: asyncio.CancelledError) -> Exception | None:
    """The reason for which the current task was cancelled; None for a cancel without a reason, and
    if something that the task awaited was cancelled instead."""
    given = next(iter(cancelled.args), None)
    if isinstance(given, Exception):
        return given
    task = asyncio.current_task()
    return _reasons.get(task) if task is not None and task.cancelling() else None
