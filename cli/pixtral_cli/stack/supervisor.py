"""Runs the processes of a stack, and leaves none behind.

There are two processes, so that one of them still cleans up if the other is killed. The caller
starts the *guard*. The guard forks the *supervisor*, and watches it and the caller. The supervisor
starts the stack's processes and stops them in order. The system kills each process of the stack
when the supervisor ends (PR_SET_PDEATHSIG). Such a process may leave children, for example a vLLM
engine whose server is gone. They become children of the supervisor or the guard
(PR_SET_CHILD_SUBREAPER), which kill them before they end.

Standard input has one line, a `Plan` as JSON, and then stays open while the stack runs. End of
file, the caller's death, SIGTERM and SIGINT stop the stack in order; a second signal kills it at
once. Standard output has the events, one JSON object a line:

    {"event": "started", "name": "encoder", "log": "/tmp/.../encoder.log"}
    {"event": "bound", "name": "encoder", "grpc": "127.0.0.1:4711", "metrics": "127.0.0.1:4712"}
    {"event": "ended", "name": "encoder", "code": 1}        all others are then stopped

The exit code is 0 after a requested stop, and 1 after a process of the stack has ended by itself.
"""

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from pixtral_cli.stack.linux_processes import become_subreaper, die_with_parent, kill_descendants
from pixtral_cli.stack.process_plan import LOADED_VARIABLE, Plan, Redis
from pixtral_cli.stack.redis_server import RedisServer, free_port

_POLL_SECONDS = 0.05
_REDIS_ATTEMPTS = 5
_WAKING_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


class _StopRequested(Exception):
    pass


class _ProcessEnded(Exception):
    pass


@dataclass(slots=True)
class _Running:
    name: str
    popen: subprocess.Popen[bytes]
    address_file: Path


class Supervisor:
    """Starts the processes of a plan, and waits. It runs in its own process, with one thread."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._environment = {**os.environ, **plan.environment}
        self._running: list[_Running] = []
        self._addresses: dict[str, dict[str, str]] = {}

    def run(self) -> int:
        """Runs until a stop is requested or a process has ended. Returns the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _WAKING_SIGNALS)
        try:
            if self._plan.redis:
                self._start_redis(self._plan.redis)
            self._start_processes()
            self._wait_for_end()
        except _StopRequested:
            return 0
        except _ProcessEnded:
            return 1
        finally:
            self._stop()

    def _start_redis(self, redis: Redis) -> None:
        for attempt in range(1, _REDIS_ATTEMPTS + 1):
            server = RedisServer(free_port(), secrets.token_urlsafe(32), redis.max_memory)
            running = self._start("redis", [redis.binary, "-"], stdin=server.config)
            try:
                self._wait(until=server.answers)
            except _ProcessEnded:
                # Another process may have taken the port after this process found it free.
                if attempt == _REDIS_ATTEMPTS:
                    raise
                continue
            self._environment["PIXTRAL_REDIS_URL"] = server.url
            report("bound", name=running.name)
            return

    def _start_processes(self) -> None:
        waiting = list(self._plan.processes)
        while len(self._addresses) < len(self._plan.processes):
            for process in [
                p
                for p in waiting
                if all(set(names) <= self._addresses.keys() for names in p.connections.values())
            ]:
                waiting.remove(process)
                connects = [
                    argument
                    for flag, names in process.connections.items()
                    for argument in (
                        flag,
                        ",".join(self._addresses[name]["grpc"] for name in names),
                    )
                ]
                command = [*process.command, *connects]
                self._start(process.name, command, environment=process.environment)
            self._wait(until=self._read_new_addresses)

    def _start(
        self,
        name: str,
        command: list[str],
        *,
        stdin: str | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> _Running:
        directory = Path(self._plan.directory)
        address_file, log = directory / f"{name}.json", directory / f"{name}.log"
        loaded_file = self._plan.loaded_file(name)
        if stdin is None:
            # An earlier run may have left files in a directory that the user named. They must not
            # be mistaken for files of this run.
            address_file.unlink(missing_ok=True)
            loaded_file.unlink(missing_ok=True)
            command = [*command, "--address-file", str(address_file)]
        supervisor = os.getpid()

        def prepare() -> None:
            die_with_parent(supervisor, signal.SIGKILL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())

        with log.open("ab") as output:
            popen = subprocess.Popen(  # noqa: S603 - the caller's own command
                command,
                env={**self._environment, LOADED_VARIABLE: str(loaded_file), **environment},
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                # preexec_fn is safe because this process has one thread.
                preexec_fn=prepare,
            )
        if popen.stdin:
            with popen.stdin as pipe:
                pipe.write((stdin or "").encode())
        running = _Running(name, popen, address_file)
        self._running.append(running)
        report("started", name=name, log=str(log))
        return running

    def _read_new_addresses(self) -> bool:
        known = len(self._addresses)
        for running in self._running:
            if running.name not in self._addresses and running.address_file.exists():
                addresses = json.loads(running.address_file.read_text())
                self._addresses[running.name] = addresses
                report("bound", name=running.name, **addresses)
        return len(self._addresses) > known

    def _wait(self, until: Callable[[], bool]) -> None:
        while not until():
            if woken := signal.sigtimedwait(_WAKING_SIGNALS, _POLL_SECONDS):
                self._handle(woken.si_signo)

    def _wait_for_end(self) -> NoReturn:
        while True:
            self._handle(signal.sigwait(_WAKING_SIGNALS))

    def _handle(self, signum: int) -> None:
        if signum != signal.SIGCHLD:
            raise _StopRequested
        self._reap()
        for running in self._running:
            if (code := running.popen.returncode) is not None:
                self._running.remove(running)
                report("ended", name=running.name, code=code)
                raise _ProcessEnded

    def _reap(self) -> None:
        """Collects every child that has ended, including orphans that became children of this
        process."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                for running in self._running:
                    if running.popen.pid == ended[0]:
                        running.popen.returncode = os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:
            return

    def _stop(self) -> None:
        """Ends all processes, the last started first, because a process needs those that started
        before it."""
        for running in reversed(self._running):
            self._reap()
            if running.popen.returncode is None:
                running.popen.terminate()
            deadline = time.monotonic() + self._plan.grace_seconds
            while running.popen.returncode is None and time.monotonic() < deadline:
                signal.sigtimedwait([signal.SIGCHLD], _POLL_SECONDS)
                self._reap()
            if running.popen.returncode is None:
                running.popen.kill()
        kill_descendants()


def report(event: str, **details: Any) -> None:
    try:
        sys.stdout.write(json.dumps({"event": event, **details}) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The caller is gone. The guard notices this as well, and stops this process.
        return


def guard(plan: Plan, supervisor: int) -> int:
    """Waits until the supervisor has ended, and kills the processes that are left. Returns the exit
    code.

    Stops the supervisor after a signal, at end of file, or when the caller is gone. A signal after
    that kills the supervisor.
    """
    signals = 0

    def count(*_: object) -> None:
        nonlocal signals
        signals += 1

    signal.signal(signal.SIGTERM, count)
    signal.signal(signal.SIGINT, count)
    lifeline = [sys.stdin.fileno()]
    signals_at_stop = None
    while not (ended := os.waitpid(supervisor, os.WNOHANG))[0]:
        if signals_at_stop is not None and signals > signals_at_stop:
            os.kill(supervisor, signal.SIGKILL)
        if select.select(lifeline, [], [], _POLL_SECONDS)[0]:
            lifeline = []
        if signals_at_stop is None and (signals or not lifeline or os.getppid() != plan.caller):
            signals_at_stop = signals
            os.kill(supervisor, signal.SIGTERM)
    kill_descendants()
    return os.waitstatus_to_exitcode(ended[1])


def main() -> NoReturn:
    # Without this, the process and its children would inherit the signals that the caller ignores
    # or blocks.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    become_subreaper()
    # The line is read byte by byte, so that the guard's select sees the end of file after it.
    line = bytearray()
    while (byte := os.read(sys.stdin.fileno(), 1)) not in (b"", b"\n"):
        line += byte
    plan = Plan.from_json(line.decode())
    me = os.getpid()
    pid = os.fork()
    if pid:
        sys.exit(guard(plan, pid) and 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
    die_with_parent(me, signal.SIGTERM)
    become_subreaper()
    sys.exit(Supervisor(plan).run())


if __name__ == "__main__":
    main()
