import json
from collections.abc import Iterator
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from models.random_checkpoint import write_random_checkpoint
from tests.support.fixture_types import Tokenizer
from tests.support.openapi import JSON, PATH, Described
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
    """The spans that `service` sends of the requests that it serves."""
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
        # For these processes alone, not for those that a test starts beside them.
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


@pytest.fixture(scope="module")
def url(service: Service) -> str:
    return f"http://{service.stack.http_target}"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    """Its requests and answers are as /openapi.json says."""
    described = Described(httpx2.get(f"{url}{PATH}").raise_for_status().json())

    def got(response: httpx2.Response) -> None:
        request = response.request
        if response.status_code == HTTPStatus.OK and request.method == "POST":
            assert described.body_problem(request.url.path, json.loads(request.read())) is None
        if response.headers["content-type"] == JSON and request.method == "POST":
            response.read()
            assert described.answer_problem("post", request.url.path, response) is None

    hooks: dict[str, list[Any]] = {"response": [got]}
    with (
        httpx2.Client(event_hooks=hooks) as http,
        openai.OpenAI(
            base_url=f"{url}/v1", api_key="any", max_retries=0, http_client=http
        ) as client,
    ):
        yield client
