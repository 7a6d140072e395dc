"""Runs each tier as a process that a test can start and stop by itself."""

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pixtral_client import Client, PixtralError
from tests.support.stack.new_picture import new_picture
from tests.support.stack.service import sample_value, wait_until

ROOT = Path(__file__).parents[3]
START_SECONDS = 180.0
# More than any stream of these tests takes, and less than a test's time limit.
DRAIN_SECONDS = 120.0
# Pause between requests of the load, so that it does not use up the machine.
PAUSE_SECONDS = 0.1

_numbers = itertools.count()


class Tier:
    """A process, `python -m MODULE`, which runs for the `with` block."""

    def __init__(
        self,
        module: str,
        directory: Path,
        *flags: str,
        drain_seconds: float = DRAIN_SECONDS,
        file_name: str = "",
        **environment: str,
    ) -> None:
        """`file_name` replaces the module in the names of its log and address file."""
        # A number makes the names unique, because an earlier process may have left its address.
        name = f"{file_name or module}.{next(_numbers)}"
        self._log = directory / f"{name}.log"
        self._address_file = directory / f"{name}.json"
        self._command = [sys.executable, "-m", module, *flags]
        self._command += ["--address-file", str(self._address_file)]
        self._command += ["--drain-seconds", str(drain_seconds)]
        self._environment = {**os.environ, **environment}

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def target(self) -> str:
        """host:port of its gRPC server, once it listens."""
        found: str = self._addresses()["grpc"]
        return found

    @property
    def http_target(self) -> str:
        """host:port of its HTTP server, if it has one."""
        found: str = self._addresses()["http"]
        return found

    def value(self, sample: str, **labels: str) -> float:
        return sample_value(self._addresses()["metrics"], sample, **labels)

    def until_ready(self) -> Self:
        # Each check opens a connection while the machine is busy with the start.
        wait_until(self._is_serving, "ready", START_SECONDS, pause=0.2)
        return self

    def drain(self) -> None:
        """Sends SIGTERM; returns once the process accepts no more connections."""
        target = self.target
        self.process.terminate()
        wait_until(lambda: not _connects(target), "taking no more connections")

    def exit_code(self) -> int:
        return self.process.wait(DRAIN_SECONDS)

    def _addresses(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self._address_file.read_text("utf-8"))
        return found

    def _is_serving(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(self._log.read_text("utf-8")[-2000:])
        if not self._address_file.exists():
            return False
        with grpc.insecure_channel(self.target) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            try:
                reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
            except grpc.RpcError:
                return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def _connects(target: str) -> bool:
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionError:
        # Refused, or reset because the listener closed while the connection waited.
        return False
    return True


class Names:
    """The addresses that a gateway of `gateway_by_names` finds for the names of the tiers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._addresses = {"encoder": ["127.0.0.1"], "decoder": ["127.0.0.1"]}
        self._write()

    def add(self, name: str, address: str) -> None:
        self._addresses[name].append(address)
        self._write()

    def remove(self, name: str, address: str) -> None:
        self._addresses[name].remove(address)
        self._write()

    def _write(self) -> None:
        unfinished = self.path.with_suffix(".new")
        unfinished.write_text(json.dumps(self._addresses), "utf-8")
        unfinished.replace(self.path)


class Load:
    """Sends requests one after the other, half of them with a new image; none may fail."""

    def __init__(self) -> None:
        self.answered = 0
        self._failures: list[PixtralError] = []
        self._over = threading.Event()

    def _ask(self, client: Client) -> None:
        for number in itertools.count():
            if self._over.wait(PAUSE_SECONDS):
                return
            content: list[str | bytes] = [f"Question {number}?"]
            if number % 2:
                content.insert(0, new_picture())
            try:
                client.chat([{"role": "user", "content": content}], max_tokens=2, ignore_eos=True)
            except PixtralError as error:
                self._failures.append(error)
            else:
                self.answered += 1

    def until_more(self, number: int) -> None:
        """Returns once `number` more requests have been answered."""
        wanted = self.answered + number
        wait_until(lambda: self.answered >= wanted or bool(self._failures), "requests answered")
        assert not self._failures

    @contextmanager
    def running(self, client: Client) -> Iterator[Self]:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self._ask, client)
            try:
                yield self
            finally:
                self._over.set()
            running.result()
        assert not self._failures


class Streams:
    """Streams long answers at once; all have begun when the constructor returns."""

    def __init__(self, client: Client, tokens: int, number: int = 20) -> None:
        self._tokens = tokens
        self._streams = [
            client.stream(
                [{"role": "user", "content": f"Story {each} of {time.monotonic_ns()}, please."}],
                max_tokens=tokens,
                ignore_eos=True,
            )
            for each in range(number)
        ]
        for stream in self._streams:
            next(stream)

    def read_to_the_end(self) -> None:
        """Reads all answers; each must have all of its tokens."""
        for stream in self._streams:
            for _ in stream:
                pass
            assert stream.completion is not None
            assert stream.completion.usage.completion_tokens == self._tokens
