from collections.abc import Iterator
from pathlib import Path

import pytest

from models.random_checkpoint import write_random_checkpoint
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("decoder") / "random-pixtral")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis(redis_server: RedisServer) -> RedisServer:
    """A real Redis that holds nothing."""
    with redis_server.client() as client:
        client.flushall()
    return redis_server
