"""Starts processes together, waits until all are ready, and ends them together."""

import json
import logging
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

import grpc

from pixtral_cli.stack.log_warnings import LogWarnings
from pixtral_cli.stack.process_plan import Plan, Process, Redis
from pixtral_client.errors import Unavailable
from pixtral_client.requests import channel_options

GRACE_SECONDS = 15.0
START_TIMEOUT = 1800.0
_POLL_SECONDS = 0.1
_WARNINGS_SECONDS = 1.0
_HEALTH_TIMEOUT = 2.0
_TAIL_LINES = 25

logger = logging.getLogger(__name__)


State = Literal["starting", "loading", "ready"]


class StackError(RuntimeError):
    """The stack could not start, or one of its processes has ended. The text names the log."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a process, `seconds` after the start of the stack.

    `percent` is the share of its weights that a process in the state `loading` has loaded; None if
    it has not begun to load them.
    """

    name: str
    state: State
    seconds: float
    percent: int | None = None


@dataclass(frozen=True, slots=True)
class Addresses:
    """host:port of a process's gRPC and Prometheus servers, and of its HTTP API if it has one."""

    grpc: str
    metrics: str
    http: str | None = None


class Stack:
    """Processes under a supervisor. They run from `start` to `close`, or during a `with` block.

    Args:
        processes: the processes to run; `target` is the address of the last one.
        redis: the Redis to start first; None if there is none.
        environment: variables for the processes, in addition to those of this process.
        log_dir: directory of the logs; None for a temporary directory, which is removed unless a
            process has failed.
        progress: function that is called with each `Progress` while the stack starts; None to log
            it.
        start_timeout: seconds within which all processes must be ready.
    """

    def __init__(
        self,
        processes: Sequence[Process],
        *,
        redis: Redis | None,
        environment: dict[str, str] | None = None,
        log_dir: Path | None = None,
        progress: Callable[[Progress], None] | None = None,
        start_timeout: float = START_TIMEOUT,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._processes = processes
        self._redis = redis
        self._environment = environment or {}
        self._given_log_dir = log_dir
        self._progress = progress or _log_progress
        self._start_timeout = start_timeout
        self._grace_seconds = grace_seconds
        self._guard: subprocess.Popen[bytes] | None = None
        self._percents: dict[str, int] = {}
        self._unread = b""
        self._failure: StackError | None = None
        self.addresses: dict[str, Addresses] = {}

    @property
    def target(self) -> str:
        """The gateway's host:port."""
        return self.addresses[self._processes[-1].name].grpc

    @property
    def http_target(self) -> str | None:
        """The gateway's host:port for OpenAI's HTTP API; None if it does not serve HTTP."""
        return self.addresses[self._processes[-1].name].http

    def start(self) -> None:
        """Starts all processes, and returns when the health service of each tier says SERVING.

        Raises:
            StackError: a process has ended, or not all processes are ready in time. All processes
                are then stopped.
        """
        if self._given_log_dir:
            self._given_log_dir.mkdir(parents=True, exist_ok=True)
        self.log_dir = self._given_log_dir or Path(tempfile.mkdtemp(prefix="pixtral-"))
        self._started = time.monotonic()
        try:
            self._start_guard()
            self._wait_until_ready()
        except BaseException as error:
            self._failure = self._failure or StackError(str(error))
            self.close()
            raise

    def wait(self, warned: Callable[[str, str], None] = lambda name, message: None) -> None:
        """Blocks until a process ends, and then raises `StackError`.

        `warned` is called with the name of a process and each warning in its log. This includes
        the warnings since the start of the process.
        """
        warnings = LogWarnings(self.log_dir)
        while True:
            for name, message in warnings.new():
                warned(name, message)
            self._read_events(timeout=_WARNINGS_SECONDS)

    def close(self) -> None:
        """Stops all processes, the gateway first, and returns when all have ended."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        try:
            _pipe(guard.stdin).close()
            guard.wait((len(self._processes) + 2) * self._grace_seconds)
        finally:
            # The guard still runs after a second Ctrl-C, or if the supervisor takes too long. The
            # signal then makes it kill all processes at once.
            if guard.poll() is None:
                guard.terminate()
                guard.wait()
            _pipe(guard.stdout).close()
            if self._failure is None and self._given_log_dir is None:
                shutil.rmtree(self.log_dir, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Unavailable):
            try:
                self._read_events(timeout=1.0)
            except StackError as failure:
                error.add_note(str(failure))
        self.close()

    def _start_guard(self) -> None:
        self._plan = Plan(
            caller=os.getpid(),
            directory=str(self.log_dir),
            processes=self._processes,
            redis=self._redis,
            environment=self._environment,
            grace_seconds=self._grace_seconds,
        )
        with (self.log_dir / "supervisor.log").open("wb") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-m", "pixtral_cli.stack.supervisor"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                # Ctrl-C at a terminal must reach only this process, which then stops the stack in
                # order.
                start_new_session=True,
            )
        _pipe(self._guard.stdin).write(self._plan.to_json().encode() + b"\n")

    def _wait_until_ready(self) -> None:
        deadline = self._started + self._start_timeout
        pending = {process.name for process in self._processes}
        while pending:
            self._read_events(timeout=_POLL_SECONDS)
            for name in sorted(pending & self.addresses.keys()):
                self._tell_loaded(name)
                if _is_serving(self.addresses[name].grpc):
                    pending.remove(name)
                    self._tell(name, "ready")
            if time.monotonic() > deadline:
                names = ", ".join(sorted(pending))
                raise StackError(
                    f"not ready after {self._start_timeout:g} s: {names}; "
                    f"their logs are in {self.log_dir}"
                )
        # The addresses get the order of the plan, rather than that of the starts.
        self.addresses = {
            process.name: self.addresses[process.name]
            for process in self._processes
            if process.name in self.addresses
        }

    def _read_events(self, timeout: float | None) -> None:
        """Handles events of the supervisor. Waits at most `timeout` seconds for the first one."""
        if self._failure:
            raise self._failure
        if self._guard is None:
            raise RuntimeError("the stack is not running")
        events = _pipe(self._guard.stdout)
        if not select.select([events], [], [], timeout)[0]:
            return
        data = os.read(events.fileno(), 65536)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._handle(json.loads(line))
        if not data:
            self._fail("supervisor", "has ended")

    def _handle(self, event: dict[str, Any]) -> None:
        name = event["name"]
        match event["event"]:
            case "started":
                self._tell(name, "starting")
            case "bound" if "grpc" in event:
                self.addresses[name] = Addresses(event["grpc"], event["metrics"], event.get("http"))
                self._tell(name, "loading")
            case "bound":
                self._tell(name, "ready")
            case "ended":
                self._fail(name, f"ended with exit code {event['code']}")

    def _tell(self, name: str, state: State, percent: int | None = None) -> None:
        self._progress(Progress(name, state, time.monotonic() - self._started, percent))

    def _tell_loaded(self, name: str) -> None:
        try:
            percent = int(self._plan.loaded_file(name).read_text("utf-8"))
        except FileNotFoundError:
            return
        if percent != self._percents.get(name):
            self._percents[name] = percent
            self._tell(name, "loading", percent)

    def _fail(self, name: str, what: str) -> None:
        log = self.log_dir / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:] if log.exists() else []
        tail = "".join(f"\n  {line}" for line in lines)
        self._failure = StackError(f"the {name} {what}; its log, {log}, ends with:{tail}")
        raise self._failure


def _is_serving(address: str) -> bool:
    # This import is here so that the module can be imported without the extra `cli`.
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address, channel_options(address)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            response = stub.Check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT)
        except grpc.RpcError:
            return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise RuntimeError("opened without a pipe")
    return pipe


def _log_progress(progress: Progress) -> None:
    if progress.percent is None:
        logger.info("%s %s (%.1f s)", progress.name, progress.state, progress.seconds)
