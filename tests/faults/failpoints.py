"""Moments at which a process dies as by kill -9, when a test says so.

Random kills rarely meet them. They are planted from outside: nothing of it is in the tiers' own
code, and `mutated` runs a tier with its moment wrapped. The file that PIXTRAL_TEST_FAILPOINT names
says that the process dies when it reaches its moment next.
"""

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import wraps
from pathlib import Path
from typing import Any

FILE = "PIXTRAL_TEST_FAILPOINT"
# The moment, for each tier.
MOMENTS = {
    "gateway": "as it streams an answer",
    "encoder": "with an image stored and not told",
    "decoder": "in the midst of an answer",
}
DELTAS = 2


def path_of(directory: Path, name: str) -> Path:
    """The file of a process by its name."""
    return directory / f"{name}.failpoint"


def plant(tier: str) -> None:
    """Before the tier runs in this process."""
    if file := os.environ.pop(FILE, ""):
        _PLANTS[tier](Path(file))


def _reach(file: Path) -> None:
    if file.exists():
        file.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def _gateway(file: Path) -> None:
    from pixtral_gateway.pipeline import Pipeline

    named: Any = Pipeline
    named.stream = _after_some(named.stream, file)


def _encoder(file: Path) -> None:
    from pixtral_core.cache.embedding_store import EmbeddingStore

    named: Any = EmbeddingStore
    put = named.put

    async def stores(self: Any, *given: Any) -> Any:
        stored = await put(self, *given)
        _reach(file)
        return stored

    named.put = stores


def _decoder(file: Path) -> None:
    from pixtral_decoder.decoder import Decoder

    named: Any = Decoder
    named.generate = _after_some(named.generate, file)


def _after_some(generate: Callable[..., Any], file: Path) -> Callable[..., Any]:
    @wraps(generate)
    async def generates(*given: Any, **more: Any) -> AsyncIterator[Any]:
        number = 0
        async with aclosing(generate(*given, **more)) as events:
            async for event in events:
                yield event
                number += 1
                if number > DELTAS:
                    _reach(file)

    return generates


_PLANTS = {"gateway": _gateway, "encoder": _encoder, "decoder": _decoder}
