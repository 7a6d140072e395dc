"""Errors of work whose callers have all left."""

import asyncio
from typing import Any


def read_error(done: "asyncio.Future[Any]") -> None:
    """A callback of a task or a future. It reads the error, which asyncio would otherwise log as
    lost when a cancelled caller has not read it."""
    if not done.cancelled():
        done.exception()
