"""Runs the echo process as a child of the test."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.echo_process import exists

ROOT = Path(__file__).parents[2]


class Process:
    def __init__(self, child: asyncio.subprocess.Process, directory: Path) -> None:
        self.child = child
        self.address_file = directory / "address.json"
        self.release = directory / "release"
        self.failure = directory / "failure"
        self.stopped = directory / "stopped"

    async def addresses(self) -> dict[str, str]:
        async with asyncio.timeout(120):
            await exists(self.address_file)
        found: dict[str, str] = json.loads(self.address_file.read_text())
        return found

    async def ended(self) -> tuple[int | None, str]:
        """The exit code and the log."""
        async with asyncio.timeout(120):
            _, err = await self.child.communicate()
        return self.child.returncode, err.decode()


@asynccontextmanager
async def process(directory: Path, *flags: str) -> AsyncIterator[Process]:
    made = Process(
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.echo_process",
            *("--address-file", directory / "address.json", "--release", directory / "release"),
            *("--failure", directory / "failure", "--stopped", directory / "stopped"),
            *flags,
            cwd=ROOT,
            stderr=asyncio.subprocess.PIPE,
        ),
        directory,
    )
    try:
        yield made
    finally:
        if made.child.returncode is None:
            made.child.kill()
            await made.child.wait()
