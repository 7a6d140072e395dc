"""The component that lets the gateway fetch images, added to an overlay as docs/deploy.md says."""

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from pixtral_gateway.images.url_fetch import is_public
from pixtral_gateway.settings import GatewaySettings
from tools.deploy.check import RULES
from tools.deploy.manifests import kubernetes_versions, schema_violations, with_component
from tools.deploy.objects import Object, environment, labels_of, matches, name_of, of_kind, tiers


@pytest.fixture
def objects() -> list[Object]:
    return with_component("production", "image-urls")


def test_it_fits_the_overlay(objects: list[Object]) -> None:
    assert [problem for rule in RULES["production"] for problem in rule(objects)] == []
    for version in kubernetes_versions():
        for obj in objects:
            assert list(schema_violations(obj, version)) == []


def test_the_gateway_alone_may_go_out_and_to_public_addresses_alone(objects: list[Object]) -> None:
    (policy,) = (o for o in of_kind(objects, "NetworkPolicy") if name_of(o) == "image-urls")
    ((peer,),) = (rule["to"] for rule in policy["spec"]["egress"])
    closed = [ip_network(block) for block in peer["ipBlock"]["except"]]
    for address in ("10.0.0.1", "172.31.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1"):
        assert not is_public(address)
        assert any(ip_address(address) in block for block in closed)
    assert not any(ip_address("93.184.215.14") in block for block in closed)
    for deployment, container in tiers(objects):
        is_gateway = name_of(deployment) == "gateway"
        assert matches(policy["spec"]["podSelector"], labels_of(deployment)) == is_gateway
        if is_gateway:
            hosts = environment(objects, container)["PIXTRAL_IMAGE_URL_HOSTS"]
            GatewaySettings(
                model_dir=Path(), decoders=("127.0.0.1:1",), image_url_hosts=hosts.split(",")
            )
