import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.random_checkpoint import RandomSpec, write_random_checkpoint
from tests.support.fixture_types import Checkpoints
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoints]:
    """Makes each kind of random checkpoint once, and removes all of them at the end."""
    root = tmp_path_factory.mktemp("checkpoints")
    made: dict[RandomSpec, Path] = {}

    def get(spec: RandomSpec) -> Path:
        if spec not in made:
            made[spec] = write_random_checkpoint(root / f"model-{len(made)}", spec)
        return made[spec]

    yield get
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def checkpoint_dir(checkpoints: Checkpoints) -> Path:
    return checkpoints(RandomSpec())


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
