"""Several worker processes on one port, and the parent that supervises them.

The operator starts the parent. The parent owns the ports, shows the metrics of all workers on one
page, answers health checks and supervises the workers. Each worker is a whole server with its own
event loop, and the kernel distributes connections among them (SO_REUSEPORT). A worker is a new
process that gets only two pipes and a folder of counts from its parent. On one pipe it gets its
settings, and then the command to serve; on the other it reports its progress. A worker listens once
it is loaded, so that it can answer each connection that it accepts. All workers together have one
limit: they share its counts, and the parent gives back the amounts that a dead worker had in use.

When a worker dies, the parent starts another one a second later. The dead worker's requests are
lost, as with a pod. The parent ends with an error at the fifth death within a minute, and if a
worker ends before all workers have served.
"""

import asyncio
import atexit
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypeVar

import uvloop
from prometheus_client import multiprocess

from pixtral_core.concurrency.shared_counts import SharedCounts
from pixtral_core.errors import StartupError
from pixtral_core.server.health import NOT_SERVING, SERVING, Health, health_server
from pixtral_core.server.process import (
    STOP_SECONDS,
    Addresses,
    bind,
    raise_file_limit,
    signalled,
    write_addresses,
)
from pixtral_core.settings import ProcessSettings
from pixtral_core.telemetry.logs import configure_logging
from pixtral_core.telemetry.metrics import MetricsServer, metrics_of, start_metrics_server

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=ProcessSettings)

METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

LOADED, SERVE, SERVES = b"loaded\n", b"serve\n", b"serves\n"

RESTART_SECONDS = 1.0
MAX_DEATHS = 5
DEATHS_WITHIN_SECONDS = 60.0


class Worker:
    """A worker's side of its pipes, which are its standard input and output.

    Attributes:
        counts: the counts that this worker shares with the others.
    """

    def __init__(self) -> None:
        """Reads the parent's first message. Blocking."""
        line = bytearray()
        # sys.stdin would also read bytes after the line, which belong to the next command.
        while (read := os.read(sys.stdin.fileno(), 1)) not in (b"\n", b""):
            line += read
        self._given = json.loads(line)
        self.counts = SharedCounts(
            Path(self._given["directory"]), self._given["worker"], self._given["workers"]
        )
        self._commands: asyncio.StreamReader | None = None
        self._watching: asyncio.Task[None] | None = None

    def settings(self, cls: type[S]) -> S:
        return cls.model_validate(self._given["settings"])

    async def may_serve(self) -> None:
        """Reports that this worker is loaded, and returns when all are."""
        commands = self._commands = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        os.write(sys.stdout.fileno(), LOADED)
        if await commands.readline() != SERVE:
            raise StartupError("the parent process of this worker has ended")
        self._watching = asyncio.create_task(self._end_with_parent(commands))

    def serves(self) -> None:
        os.write(sys.stdout.fileno(), SERVES)

    async def _end_with_parent(self, commands: asyncio.StreamReader) -> None:
        await commands.read()
        # The parent has ended, so the worker removes the parent's directory of metrics.
        atexit.register(shutil.rmtree, os.environ[METRICS_VARIABLE], ignore_errors=True)
        os.kill(os.getpid(), signal.SIGTERM)


def run_workers(
    module: str, settings: ProcessSettings, workers: int, services: Sequence[str]
) -> NoReturn:
    """Supervises `workers` processes, each `python -m MODULE`, until SIGTERM or SIGINT.

    Then all workers drain, and the parent exits 0. A second signal ends all of them at once. The
    parent exits 1 if the workers cannot start or die too often.
    """
    configure_logging(settings.log_level, settings.log_format)
    raise_file_limit()
    with (
        tempfile.TemporaryDirectory(prefix="pixtral-metrics-") as directory,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        exit_code = runner.run(_serve(module, settings, workers, services, directory))
    sys.exit(exit_code)


async def _serve(
    module: str, settings: ProcessSettings, workers: int, services: Sequence[str], directory: str
) -> int:
    stopping = asyncio.create_task(signalled())
    parent = _Parent(module, settings, workers, services, directory)
    try:
        await parent.open()
        keeping = asyncio.create_task(parent.keep())
        await asyncio.wait((keeping, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not keeping.done():
            return 0
        keeping.result()
    except StartupError as error:
        logger.error("cannot serve: %s", error)
    finally:
        await parent.close()
    return 1


class _Parent:
    def __init__(
        self,
        module: str,
        settings: ProcessSettings,
        workers: int,
        services: Sequence[str],
        directory: str,
    ) -> None:
        self._module = module
        self._settings = self._workers_settings = settings
        self._workers = workers
        self._directory = directory
        self._counts = Path(directory, "counts")
        self._counts.mkdir()
        self._health = Health(services)
        self._health_server = health_server(self._health)
        self._metrics: MetricsServer | None = None
        self._sockets: list[socket.socket] = []
        self._addresses = Addresses("", "")
        self._running: dict[int, Process] = {}
        self._loaded: set[int] = set()
        self._serving: set[int] = set()
        self._has_served = False
        self._is_closing = False
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)

    async def open(self) -> None:
        """Reserves the ports of the workers. Raises StartupError."""
        bound: dict[str, str] = {}
        for door in self._settings.doors:
            listen: str | None = getattr(self._settings, door)
            if listen is not None:
                held, bound[door] = _hold(listen)
                self._sockets.append(held)
        registry = metrics_of(self._directory, lambda: [p.pid for p in self._running.values()])
        self._metrics = start_metrics_server(self._settings.metrics_listen, registry)
        own = {"health_listen": None, "address_file": None}
        self._workers_settings = self._settings.model_copy(update=own | bound)
        self._addresses = Addresses(
            bound["listen"], self._metrics.address, bound.get("http_listen")
        )
        if self._settings.health_listen is not None:
            bind(self._health_server, self._settings.health_listen, None)
            await self._health_server.start()

    async def keep(self) -> None:
        """Runs until cancelled. Raises StartupError if the workers die too often."""
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(self._workers):
                    group.create_task(self._keep(index))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def close(self) -> None:
        """Ends all workers, after they have drained."""
        self._is_closing = True
        self._health.set(NOT_SERVING)
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.terminate()
        ending = [asyncio.ensure_future(p.wait()) for p in self._running.values()]
        if ending:
            patience = self._settings.drain_seconds + STOP_SECONDS
            _, late = await asyncio.wait(ending, timeout=patience)
            if late:
                logger.error("killing %d workers that have not ended", len(late))
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        await self._health_server.stop(0)
        for held in self._sockets:
            held.close()
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)

    async def _keep(self, index: int) -> None:
        while not self._is_closing:
            process = await self._start(index)
            code = await self._follow(index, process)
            if self._is_closing:
                return
            del self._running[index]
            self._loaded.discard(index)
            self._serving.discard(index)
            multiprocess.mark_process_dead(process.pid, self._directory)  # type: ignore[no-untyped-call]
            SharedCounts(self._counts, index, self._workers).give_back()
            if not self._has_served:
                raise StartupError(
                    f"a worker ended with exit code {code} before all workers served"
                )
            now = time.monotonic()
            self._deaths.append(now)
            logger.error("worker %d ended with exit code %d; starting another", index, code)
            if len(self._deaths) == MAX_DEATHS and now - self._deaths[0] < DEATHS_WITHIN_SECONDS:
                raise StartupError(
                    f"{MAX_DEATHS} workers have died within {DEATHS_WITHIN_SECONDS:g} s"
                )
            await asyncio.sleep(RESTART_SECONDS)

    async def _start(self, index: int) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            stdin=PIPE,
            stdout=PIPE,
            env={**os.environ, METRICS_VARIABLE: self._directory},
            # Only the parent gets a Ctrl-C from the terminal, and it ends the workers.
            start_new_session=True,
        )
        self._running[index] = process
        given = {
            "worker": index,
            "workers": self._workers,
            "directory": str(self._counts),
            "settings": self._workers_settings.model_dump(mode="json"),
        }
        self._tell(process, json.dumps(given).encode() + b"\n")
        return process

    async def _follow(self, index: int, process: Process) -> int:
        assert process.stdout is not None  # noqa: S101 - for the type alone
        async for line in process.stdout:
            if line == LOADED:
                self._loaded.add(index)
                if self._has_served:
                    self._tell(process, SERVE)
                elif len(self._loaded) == self._workers:
                    for each in self._running.values():
                        self._tell(each, SERVE)
            elif line == SERVES:
                self._serving.add(index)
                if not self._has_served and len(self._serving) == self._workers:
                    self._has_served = True
                    await self._announce()
        return await process.wait()

    async def _announce(self) -> None:
        if self._settings.address_file is not None:
            write_addresses(self._settings.address_file, self._addresses)
        logger.info("%d workers on %s", self._workers, self._addresses)
        if not self._is_closing:
            self._health.set(SERVING)

    def _tell(self, process: Process, line: bytes) -> None:
        assert process.stdin is not None  # noqa: S101 - for the type alone
        process.stdin.write(line)


def _hold(listen: str) -> tuple[socket.socket, str]:
    """A socket that reserves an address for the workers, and the address with its actual port."""
    host, _, port = listen.rpartition(":")
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        if int(port):
            # This fails if another process has the port. With SO_REUSEPORT alone, both would share
            # it by mistake.
            with socket.socket(family, socket.SOCK_STREAM) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind((bare, int(port)))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((bare, int(port)))
    except OSError:
        held.close()
        raise StartupError(f"cannot listen on {listen}") from None
    return held, f"{host}:{held.getsockname()[1]}"
