"""Starts a Redis for one measurement."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pixtral_cli.stack.redis_server import RedisServer, find_redis_server, free_port


@contextmanager
def redis(max_memory: str = "4gb") -> Iterator[RedisServer]:
    """An empty Redis on a free port, which runs until the block ends."""
    binary = find_redis_server()
    if binary is None:
        raise SystemExit("redis-server is not on the PATH")
    server = RedisServer(free_port(), "bench", max_memory)
    process = subprocess.Popen([binary, "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.communicate(server.config.encode(), timeout=0.1)
        while not server.answers():
            time.sleep(0.05)
        yield server
    finally:
        process.kill()
        process.wait()
