"""Finds the async generators that a suspended task waits in."""

import asyncio
import gc
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def generators_of(task: "asyncio.Task[Any]") -> list[str]:
    """Names of the project's async generators that `task` waits in, the outermost first.

    Each name is `module.function`. Generators of the tests do not count.
    """
    return [
        f"{Path(code.co_filename).stem}.{code.co_name}"
        for code in map(_code, _awaited(task.get_coro()))
        if code is not None
        and code.co_flags & inspect.CO_ASYNC_GENERATOR
        and "tests" not in Path(code.co_filename).parts
        and Path(code.co_filename).is_relative_to(ROOT)
        and "site-packages" not in code.co_filename
    ]


def _awaited(awaitable: Any) -> Iterator[Any]:
    while awaitable is not None:
        yield awaitable
        awaitable = _next(awaitable)


def _next(awaitable: Any) -> Any:
    for attribute in ("cr_await", "ag_await", "gi_yieldfrom"):
        if hasattr(awaitable, attribute):
            return getattr(awaitable, attribute)
    # Other awaitables show what they await only to the garbage collector.
    referents = gc.get_referents(awaitable)
    return next((x for x in referents if inspect.isasyncgen(x) or inspect.iscoroutine(x)), None)


def _code(awaitable: Any) -> Any:
    for attribute in ("ag_code", "cr_code", "gi_code"):
        if hasattr(awaitable, attribute):
            return getattr(awaitable, attribute)
    return None
