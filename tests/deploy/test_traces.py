"""The component that sends traces, added to an overlay as docs/deploy.md says."""

import pytest

from tools.deploy.check import RULES
from tools.deploy.manifests import kubernetes_versions, schema_violations, with_component
from tools.deploy.objects import Object, environment, labels_of, matches, name_of, of_kind, tiers

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture(params=["gpu", "production"])
def traced(request: pytest.FixtureRequest) -> tuple[str, list[Object]]:
    return request.param, with_component(request.param, "traces")


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
