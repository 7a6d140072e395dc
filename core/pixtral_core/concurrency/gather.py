"""Runs several coroutines at once; when one fails, cancels the others."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def run_all(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results, in the order of the coroutines. The first that fails cancels the others, and its
    error is raised unchanged."""
    if len(works) < 2:
        return [await work for work in works]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
