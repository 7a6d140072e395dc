"""The log lines of code that runs in the test's own process."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pixtral_core.telemetry.logs import JsonFormatter, TextFormatter


class Lines(logging.Handler):
    """Log lines in both formats. `calls` are the lines that end a call."""

    def __init__(self) -> None:
        super().__init__()
        self.json: list[dict[str, Any]] = []
        self.text: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.json.append(json.loads(JsonFormatter().format(record)))
        self.text.append(TextFormatter().format(record))

    @property
    def calls(self) -> list[dict[str, Any]]:
        return [
            line for line in self.json if line["logger"] == "pixtral_core.telemetry.request_log"
        ]

    async def become(self, condition: Callable[["Lines"], object]) -> None:
        async with asyncio.timeout(60):
            while not condition(self):
                await asyncio.sleep(0.005)


@contextmanager
def logged() -> Iterator[Lines]:
    handler, logger = Lines(), logging.getLogger("pixtral_core")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)
