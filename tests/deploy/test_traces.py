"""The component that sends traces, added to an overlay as docs/deploy.md says."""

import os
from pathlib import Path

import pytest

from tools.deploy.check import RULES
from tools.deploy.manifests import K8S, build, kubernetes_versions, schema_violations
from tools.deploy.objects import Object, environment, labels_of, matches, name_of, of_kind, tiers

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture(params=["gpu", "production"])
def traced(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, list[Object]]:
    root = os.path.relpath(K8S.resolve(), tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\n"
        "kind: Kustomization\n"
        f"resources: [{root}/overlays/{request.param}]\n"
        f"components: [{root}/components/traces]\n"
        "namespace: pixtral\n"
    )
    return request.param, build(str(tmp_path))


def test_it_fits_every_overlay(traced: tuple[str, list[Object]]) -> None:
    overlay, objects = traced
    assert [problem for rule in RULES[overlay] for problem in rule(objects)] == []
    for version in kubernetes_versions():
        for obj in objects:
            assert list(schema_violations(obj, version)) == []


def test_every_tier_is_told_where_to_send_and_may_send_there(
    traced: tuple[str, list[Object]],
) -> None:
    _, objects = traced
    (policy,) = (o for o in of_kind(objects, "NetworkPolicy") if name_of(o) == "traces")
    (rule,) = policy["spec"]["egress"]
    found = set()
    for deployment, container in tiers(objects):
        told = environment(objects, container)
        assert told[ENDPOINT].endswith(f".monitoring:{rule['ports'][0]['port']}")
        assert "service.instance.id=$(POD_NAME)" in told["OTEL_RESOURCE_ATTRIBUTES"]
        assert "POD_NAME" in {variable["name"] for variable in container["env"]}
        assert matches(policy["spec"]["podSelector"], labels_of(deployment))
        found.add(name_of(deployment))
    assert found == {"gateway", "encoder", "decoder"}
