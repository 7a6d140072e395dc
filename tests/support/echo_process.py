"""A process whose tier starts, answers and fails as its flags say, for the tests of `run`."""

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

from google.protobuf.wrappers_pb2 import StringValue
from pydantic import Field

import pixtral_core.server.quick_start  # noqa: F401 - as the tiers do
from pixtral_core.errors import StartupError
from pixtral_core.server.process import run
from pixtral_core.settings import ProcessSettings, load
from tests.support.echo_tier import Context, EchoTier


class Settings(ProcessSettings):
    start: Literal["ready", "awaits", "blocks", "refuses", "breaks"] = Field(
        "ready", description="How the tier starts."
    )
    failure: Path | None = Field(None, description="The tier fails once this file exists.")
    stopped: Path | None = Field(None, description="File that the tier's stop makes.")
    release: Path | None = Field(None, description="Streams end once this file exists.")


class Tier(EchoTier):
    def __init__(self, settings: Settings) -> None:
        super().__init__(stream=self._stream)
        self._settings = settings

    async def start(self) -> None:
        match self._settings.start:
            case "awaits":
                await asyncio.Event().wait()
            case "blocks":
                await asyncio.to_thread(time.sleep, 3600)
            case "refuses":
                raise StartupError("the model is not there")
            case "breaks":
                raise KeyError("broken")

    async def failed(self) -> None:
        await exists(self._settings.failure)

    async def stop(self) -> None:
        if self._settings.stopped is not None:
            self._settings.stopped.touch()

    async def _stream(self, request: StringValue, context: Context) -> AsyncIterator[StringValue]:
        if request.value == "garbage":
            yield StringValue(value=json.dumps([gc.get_freeze_count(), gc.get_threshold()]))
            return
        yield StringValue(value="first")
        await exists(self._settings.release)
        yield StringValue(value="last")


async def exists(path: Path | None) -> None:
    def found() -> bool:
        return path is not None and path.exists()

    while not found():
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    run(Tier, load(Settings, prog="echo"))
