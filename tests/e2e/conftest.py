from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from models.random_checkpoint import write_random_checkpoint
from tests.e2e.service import Service, serve
from tests.redis_server import RedisServer
from tests.reference import Reference

Tokenizer = MistralTokenizer[Any, Any, Any, Any, Any]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("e2e") / "random-pixtral")


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def service(
    checkpoint: Path, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with serve(checkpoint, redis.url, tmp_path_factory.mktemp("logs")) as service:
        yield service


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return MistralTokenizer.from_file(str(checkpoint / "tekken.json"))
