"""The faults of a Redis, its own or those of others."""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable

import psutil
import redis

from tests.faults.machine_faults import fill_disk, free_disk
from tests.support.redis_server import RedisServer

Act = Callable[[RedisServer, random.Random], Awaitable[None]]


def _with_client(
    work: Callable[[redis.Redis, RedisServer, random.Random], None],
) -> Act:
    async def act(server: RedisServer, rng: random.Random) -> None:
        def run() -> None:
            with server.client() as client:
                work(client, server, rng)

        await asyncio.to_thread(run)

    return act


async def kill(server: RedisServer, rng: random.Random) -> None:
    server.stop()


async def start(server: RedisServer, rng: random.Random) -> None:
    await asyncio.to_thread(server.start)


async def restart(server: RedisServer, rng: random.Random) -> None:
    await kill(server, rng)
    await start(server, rng)


async def stop(server: RedisServer, rng: random.Random) -> None:
    os.kill(server.pid, signal.SIGSTOP)


async def go_on(server: RedisServer, rng: random.Random) -> None:
    os.kill(server.pid, signal.SIGCONT)


@_with_client
def flush(client: redis.Redis, server: RedisServer, rng: random.Random) -> None:
    client.flushall()


@_with_client
def fill(client: redis.Redis, server: RedisServer, rng: random.Random) -> None:
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1mb")


@_with_client
def make_room(client: redis.Redis, server: RedisServer, rng: random.Random) -> None:
    client.config_set("maxmemory", "256mb")
    client.config_set("maxmemory-policy", "allkeys-lfu")


@_with_client
def forbid_writes(client: redis.Redis, server: RedisServer, rng: random.Random) -> None:
    # A replica of a primary that does not exist: clients can still read what is there.
    client.replicaof("127.0.0.1", 1)


@_with_client
def allow_writes(client: redis.Redis, server: RedisServer, rng: random.Random) -> None:
    client.replicaof("NO", "ONE")


@_with_client
def keep_on_full_disk(client: redis.Redis, server: RedisServer, rng: random.Random) -> None:
    """It takes no write any more once it could not save what it has."""
    fill_disk(psutil.Process(server.pid))
    client.config_set("save", "1 1")
    client.bgsave()


@_with_client
def keep_nothing(client: redis.Redis, server: RedisServer, rng: random.Random) -> None:
    client.config_set("save", "")
    free_disk(psutil.Process(server.pid))


@_with_client
def change_password(client: redis.Redis, server: RedisServer, rng: random.Random) -> None:
    client.config_set("requirepass", "another")
    client.client_kill_filter(_type="normal", skipme=True)


async def change_password_back(server: RedisServer, rng: random.Random) -> None:
    def run() -> None:
        with redis.Redis(port=server.port, password="another", socket_timeout=5) as client:  # noqa: S106
            client.config_set("requirepass", server.password)

    await asyncio.to_thread(run)


@_with_client
def flip_values(client: redis.Redis, server: RedisServer, rng: random.Random) -> None:
    """In place: one bit of some, the sign of every other number of the rest."""
    for key in sorted(client.scan_iter("pixtral:*")):
        value = client.get(key)
        if not isinstance(value, bytes) or not value:
            continue
        data = bytearray(value)
        if rng.random() < 0.5:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            flip_signs(data)
        client.set(key, bytes(data), keepttl=True)


def flip_signs(data: bytearray) -> None:
    """The last float32 numbers change: finite as before, and of another picture."""
    for at in range(len(data) - 1, len(data) // 4, -8):
        data[at] ^= 0x80


@_with_client
def swap_values(client: redis.Redis, server: RedisServer, rng: random.Random) -> None:
    """Each embedding has the next one's place."""
    keys = sorted(client.scan_iter("pixtral:emb:*"))
    values = [client.get(key) for key in keys]
    for key, value in zip(keys, values[1:] + values[:1], strict=True):
        if value is not None:
            client.set(key, value)


FAULTS: tuple[tuple[str, Act, Act | None], ...] = (
    ("killed, and started later", kill, start),
    ("restarted, empty", restart, None),
    ("stopped (SIGSTOP)", stop, go_on),
    ("flushed", flush, None),
    ("full (noeviction)", fill, make_room),
    ("read-only", forbid_writes, allow_writes),
    ("unable to save to a full disk", keep_on_full_disk, keep_nothing),
    ("with another password", change_password, change_password_back),
    ("with every value flipped", flip_values, None),
    ("with values swapped", swap_values, None),
)
