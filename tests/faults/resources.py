"""The resources that processes take and leave: memory, descriptors, threads, files and logs."""

import asyncio
import re
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.checker import Violation
from tests.faults.questions import Question
from tests.faults.stack import MIB, Part, Stack, key_of, tier_of

SAMPLE_SECONDS = 2.0
# Until caches and pools of a process have what they keep.
WARM_SECONDS = 20.0
# A shorter one may stand in any line.
LEAST_CHARACTERS = 12
# Bytes of the log for a request: a line in each tier, and more where something breaks.
LOG_BYTES, LOG_BYTES_A_REQUEST = 1 << 20, 4096
# Files of processes that run; and a kill leaves those that a process could not clear up.
FILES, FILES_A_KILL = 32, 8
# Python's own words for a coroutine or a task whose error nobody saw.
UNSEEN = re.compile(r"never retrieved|was never awaited")


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a process and its children.

    Attributes:
        pid: tells it from the one before its restart.
        is_ready: all of the service is, so that this process no longer loads.
    """

    name: str
    pid: int
    at: float
    mib: float
    files: int
    threads: int
    is_ready: bool = True


@dataclass(frozen=True, slots=True)
class Bound:
    """`most`: at any time. `growth`: from one warm process at rest to the same later."""

    most: float
    growth: float


# In MiB, or numbers. The growth is a cache's way to its bound, and what allocators keep.
BOUNDS: dict[str, dict[str, Bound]] = {
    "gateway": {
        "mib": Bound(1024, 128),
        "files": Bound(600, 60),
        "threads": Bound(120, 24),
    },
    "encoder": {
        "mib": Bound(2048, 256),
        "files": Bound(300, 60),
        "threads": Bound(120, 24),
    },
    "decoder": {
        "mib": Bound(3072, 512),
        "files": Bound(400, 60),
        "threads": Bound(240, 24),
    },
}


def look(part: Part, *, is_ready: bool = True) -> Sample | None:
    """None if it does not run."""
    mib, files, threads = 0.0, 0, 0
    with suppress(psutil.Error):
        pid = part.pid
        for each in part.processes():
            with suppress(psutil.Error):
                mib += each.memory_info().rss / MIB
                files += each.num_fds()
                threads += each.num_threads()
        return Sample(part.name, pid, time.monotonic(), mib, files, threads, is_ready)
    return None


class Watch:
    """Looks at all processes from `begin` to `end`."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._looking: asyncio.Task[None] | None = None
        self.samples: list[Sample] = []

    def begin(self) -> None:
        self._looking = asyncio.create_task(self._look())

    async def end(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking
        await self.now()

    async def now(self) -> None:
        is_ready = await asyncio.to_thread(self._stack.is_ready)
        for part in self._stack.parts.values():
            sample = await asyncio.to_thread(look, part, is_ready=is_ready)
            if sample is not None:
                self.samples.append(sample)

    async def _look(self) -> None:
        while True:
            await self.now()
            await asyncio.sleep(SAMPLE_SECONDS)


def check_samples(samples: Sequence[Sample]) -> list[Violation]:
    """The last sample of a process is at rest."""
    found: dict[str, Violation] = {}
    for sample in samples:
        for what, bound in BOUNDS[tier_of(sample.name)].items():
            value = getattr(sample, what)
            if value > bound.most:
                text = f"{sample.name} had {value:.0f} {what}, and may have {bound.most:g}"
                found.setdefault(f"{sample.name} {what}", Violation("grows", text))
    for own in _by_process(sample for sample in samples if sample.is_ready):
        warm = [sample for sample in own if sample.at >= own[0].at + WARM_SECONDS]
        if not warm:
            continue
        for what, bound in BOUNDS[tier_of(own[0].name)].items():
            before, after = getattr(warm[0], what), getattr(own[-1], what)
            if after - before > bound.growth:
                text = (
                    f"{own[0].name} went from {before:.0f} to {after:.0f} {what} in "
                    f"{own[-1].at - warm[0].at:.0f} s, and may gain {bound.growth:g}"
                )
                found.setdefault(f"{own[0].name} {what}", Violation("grows", text))
    return list(found.values())


def _by_process(samples: Iterable[Sample]) -> Iterable[list[Sample]]:
    found: dict[int, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.pid, []).append(sample)
    return found.values()


def secrets_of(questions: Iterable[Question], tenants: Iterable[str]) -> set[str]:
    """The texts that no log may hold."""
    texts = {text for question in questions for text in question.texts}
    return {text for text in texts if len(text) >= LEAST_CHARACTERS} | set(map(key_of, tenants))


def check_logs(directory: Path, secrets: Collection[str], requests: int) -> list[Violation]:
    found: list[Violation] = []
    nbytes = 0
    for path in sorted(directory.glob("*.log")):
        log = path.read_text("utf-8", "replace")
        nbytes += len(log)
        held = [secret for secret in secrets if secret in log]
        if held:
            found.append(Violation("logged", f"{path.name} holds {len(held)}, such as {held[0]!r}"))
        if unseen := UNSEEN.search(log):
            found.append(Violation("logged", f"{path.name} says {unseen[0]!r}"))
    most = LOG_BYTES + LOG_BYTES_A_REQUEST * requests
    if nbytes > most:
        found.append(Violation("grows", f"the logs have {nbytes} bytes, and may have {most}"))
    return found


def check_files(directory: Path, kills: int) -> list[Violation]:
    """The files that are left in the folder for temporary ones."""
    left = [path for path in directory.rglob("*") if not path.is_dir()]
    most = FILES + FILES_A_KILL * kills
    if len(left) > most:
        some = ", ".join(path.name for path in left[:3])
        return [Violation("grows", f"{len(left)} temporary files, and may be {most}: {some}")]
    return []
