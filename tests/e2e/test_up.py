"""`pixtral-serve up` shows how a real stack loads, and what a person needs of one that is ready."""

import urllib.request
from pathlib import Path

import pytest

from pixtral_cli.main import make_parser
from pixtral_cli.stack.redis_server import free_port
from pixtral_cli.up import summary
from tests.support.redis_server import RedisServer
from tests.support.stack.service import Service


@pytest.mark.parametrize("tier", ["encoder", "decoder"])
def test_the_weights_load_from_nothing_to_all(service: Service, tier: str) -> None:
    steps = [step for step in service.progress if step.name == tier]
    percents = [step.percent for step in steps if step.percent is not None]
    assert percents == sorted(percents)
    assert percents[-1] == 100
    states = [(step.state, step.percent) for step in steps]
    assert states[:2] == [("starting", None), ("loading", None)]
    assert states[-1] == ("ready", None)


def test_the_gateway_has_no_weights(service: Service) -> None:
    assert {step.percent for step in service.progress if step.name == "gateway"} == {None}


def test_the_summary_names_every_door_and_what_the_stack_can_do(
    service: Service, redis: RedisServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = service.stack
    monkeypatch.setenv("PIXTRAL_REDIS_URL", redis.url)
    lines = summary(make_parser().parse_args(["up", str(checkpoint)]), stack)
    found = dict(lines)
    assert found["ready"] == f"logs are in {stack.log_dir}"
    assert found["OpenAI's API"] == f"http://{stack.http_target}/v1"
    assert found["gRPC"] == stack.target
    for name in ("OpenAI's API", "page"):
        url = found[name].replace("/v1", "/v1/models")
        with urllib.request.urlopen(url, timeout=10) as response:
            assert response.status == 200
    metrics = [text.split() for name, text in lines if name == "metrics"]
    assert [name for name, _ in metrics] == ["gateway", "decoder", "encoder"]
    for tier, url in metrics:
        with urllib.request.urlopen(url, timeout=10) as response:
            assert f"pixtral_{tier}_".encode() in response.read()
    (model,) = service.client.models()
    assert found["model"] == (
        f"{checkpoint.name}: {model.context_length} tokens of context, up to 6 images of 1 MB"
    )
    permits = service.value("gateway", "pixtral_gateway_permits_limit")
    assert found["at once"] == f"{permits:.0f} answers; more are refused"
    tokens = int(found["keys, values"].removeprefix("memory for ").split()[0])
    assert tokens >= model.context_length
    assert f"{tokens / model.context_length:.1f} times the whole" in found["keys, values"]
    assert found["Redis"] == f"127.0.0.1:{redis.port} answers"


def test_the_summary_says_that_redis_does_not_answer(
    service: Service, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("PIXTRAL_REDIS_URL", f"redis://:secret@127.0.0.1:{port}/0")
    options = make_parser().parse_args(["up", str(checkpoint)])
    text = dict(summary(options, service.stack))["Redis"]
    assert text.startswith(f"127.0.0.1:{port} does not answer: images are encoded again")
    monkeypatch.delenv("PIXTRAL_REDIS_URL")
    text = dict(summary(options, service.stack))["Redis"]
    assert text == "started here, for 1gb of image embeddings"


def test_no_page_is_named_where_none_is_served(
    service: Service, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIXTRAL_REDIS_URL", raising=False)
    for flags in (["--no-page"], ["--http-listen", "0.0.0.0:8000"]):
        options = make_parser().parse_args(["up", str(checkpoint), *flags])
        assert "page" not in dict(summary(options, service.stack))
