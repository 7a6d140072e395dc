"""From manifests and compose.yaml to containers."""

from typing import Any

import pytest

from tests.support.overlays import build_once
from tools.deploy.images import compose
from tools.images_check.containers import (
    Container,
    Mount,
    Pod,
    Probe,
    expand,
    pods_of,
    services_of,
    size,
    variables,
)
from tools.images_check.secrets import secret

VARIABLES = {"MODEL_DIR": "/weights", "REDIS_PASSWORD": "word"}


def pod(pods: list[Pod], name: str) -> Pod:
    return next(each for each in pods if each.name == name)


@pytest.fixture(scope="module")
def dev() -> list[Pod]:
    return pods_of(build_once("dev"))


@pytest.fixture(scope="module")
def services() -> list[Pod]:
    return services_of(compose(), VARIABLES)


def test_a_laptops_overlay_has_every_pod(dev: list[Pod]) -> None:
    assert {each.name for each in dev} == {"decoder", "encoder", "gateway", "redis", "weights"}
    assert [each.name for each in dev if each.is_job] == ["weights"]
    assert [each.name for each in pod(dev, "gateway").first] == ["gateway-weights"]


def test_a_tier_runs_as_its_manifest_says(dev: list[Pod]) -> None:
    decoder = pod(dev, "decoder").main

    assert decoder.image == "pixtral-decoder-cpu:0.1.0"
    assert (decoder.entry, decoder.arguments) == (None, None)
    assert (decoder.user, decoder.groups) == ((10001, 10001), (10001,))
    assert decoder.read_only
    assert not decoder.keeps_capabilities
    assert not decoder.new_privileges
    assert (decoder.memory, decoder.cores) == (8 * 2**30, 8.0)
    assert decoder.ready == Probe(port=8081)
    assert Mount("/models", "claim", "models", read_only=True) in decoder.mounts
    assert Mount("/tmp", "empty", "tmp") in decoder.mounts
    shared = next(each for each in decoder.mounts if each.target == "/dev/shm")
    assert (shared.kind, shared.size) == ("memory", 8 * 2**30)


def test_the_environment_has_config_maps_secrets_and_what_refers_to_them(dev: list[Pod]) -> None:
    environment = pod(dev, "gateway").main.environment

    assert environment["PIXTRAL_MODEL"] == "random-pixtral"
    assert environment["PIXTRAL_REDIS_URL"] == "redis://:development@redis:6379/0"
    assert "development" in (pod(dev, "redis").main.arguments or ())


def test_a_missing_secret_is_an_error_unless_it_is_optional() -> None:
    reference = {"name": "huggingface", "key": "token"}
    container: dict[str, Any] = {
        "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}}]
    }

    with pytest.raises(KeyError, match="huggingface"):
        variables(container, [])
    assert variables(container, [secret("huggingface", {"token": "t"})]) == {"HF_TOKEN": "t"}
    reference["optional"] = True  # type: ignore[assignment]
    assert variables(container, []) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [("$(A)/b", "1/b"), ("$$(A)", "$(A)"), ("$(B)", "$(B)"), ("$A", "$A"), ("a$$b", "a$b")],
)
def test_references_are_kubernetes_own(text: str, value: str) -> None:
    assert expand(text, {"A": "1"}) == value


def test_secrets_and_programs_are_mounted() -> None:
    objects = build_once("production")
    names = ("redis", "api-keys", *(f"{t}-tls" for t in ("gateway", "encoder", "decoder", "redis")))
    secrets = [secret(name, {"password": "word"}) for name in names]
    pods = pods_of([*objects, *secrets])

    gateway = pod(pods, "gateway").main
    assert Mount("/keys", "secret", "api-keys", read_only=True) in gateway.mounts
    assert Mount("/tls", "secret", "gateway-tls", read_only=True) in gateway.mounts
    assert pod(pods, "decoder").main.gpus == 1
    assert gateway.gpus == 0


def test_compose_runs_as_its_file_says(services: list[Pod]) -> None:
    encoder, redis = pod(services, "encoder").main, pod(services, "redis").main

    assert encoder.user is None  # the image's own
    assert encoder.read_only
    assert encoder.has_init
    assert not encoder.keeps_capabilities
    assert not encoder.new_privileges
    assert encoder.gpus == 1
    assert encoder.environment["PIXTRAL_REDIS_URL"] == "redis://:word@redis:6379/0"
    assert Mount("/models/pixtral", "claim", "/weights", read_only=True) in encoder.mounts
    assert pod(services, "decoder").main.shared_memory == 8 * 2**30
    assert redis.user == (10002, 10002)
    assert redis.ready == Probe(command=("redis-cli", "-e", "-a", "word", "ping"))


def options(container: Container, target: str) -> set[str]:
    return set(next(each.options for each in container.mounts if each.target == target))


def test_a_tmpfs_of_docker_executes_only_where_compose_says_so(services: list[Pod]) -> None:
    assert "noexec" in options(pod(services, "gateway").main, "/tmp")
    allowed = options(pod(services, "encoder").main, "/tmp")
    assert "exec" in allowed
    assert "noexec" not in allowed
    assert {"nosuid", "nodev", "mode=1777"} <= allowed


def test_compose_needs_its_variables() -> None:
    with pytest.raises(KeyError, match="MODEL_DIR"):
        services_of(compose(), {"REDIS_PASSWORD": "word"})


@pytest.mark.parametrize(
    ("text", "value"), [("8Gi", 2**33), ("250Mi", 250 * 2**20), ("8gb", 2**33), (1024, 1024)]
)
def test_sizes(text: str | int, value: int) -> None:
    assert size(text) == value
