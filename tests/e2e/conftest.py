from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from models.random_checkpoint import write_random_checkpoint
from tests.support.fixture_types import Tokenizer
from tests.support.redis_server import RedisServer
from tests.support.reference import Reference
from tests.support.stack.service import Service, serve
from tests.support.stack.span_collector import Collector, collector


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("e2e") / "random-pixtral")


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def spans() -> Iterator[Collector]:
    """What `service` tells of the requests that it serves."""
    with collector() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def service(
    checkpoint: Path,
    redis: RedisServer,
    spans: Collector,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    with ExitStack() as stack:
        # Of these processes alone, not of those that a test starts beside them.
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", spans.endpoint)
            environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
            environment.setenv("PIXTRAL_LOG_FORMAT", "json")
            logs = tmp_path_factory.mktemp("logs")
            service = stack.enter_context(serve(checkpoint, redis.url, logs))
        yield service


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return MistralTokenizer.from_file(str(checkpoint / "tekken.json"))
