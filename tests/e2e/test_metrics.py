"""docs/metrics.md and what the running tiers show are the same."""

import re
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.metrics_page import TIERS, Described, base_name, read_page
from tests.support.stack.new_picture import new_picture
from tests.support.stack.service import Service

OURS = ("pixtral_", "grpc_server_", "http_request")


@pytest.fixture(scope="module")
def scrapes(service: Service) -> dict[str, str]:
    """Of every tier, after a text, a new picture and the same again."""
    picture = new_picture()
    for content in (["Hello."], [picture, "What is this?"], [picture, "And why?"]):
        service.client.chat([{"role": "user", "content": content}], max_tokens=2)
    found = {}
    for tier in TIERS:
        url = f"http://{service.stack.addresses[tier].metrics}/metrics"
        # As Prometheus asks.
        accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
        request = urllib.request.Request(url, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=10) as response:
            found[tier] = response.read().decode()
    return found


def labels(text: str, page: dict[str, Described]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(base_name(sample.name, page), set()).update(
                set(sample.labels) - {"le"}
            )
    return found


@pytest.mark.parametrize("tier", TIERS)
def test_page_and_scrape_are_the_same(scrapes: dict[str, str], tier: str) -> None:
    page, text = read_page(), scrapes[tier]
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    shown = labels(text, page)
    assert {
        name: (kind, frozenset(shown[name]))
        for name, kind in types.items()
        if name.startswith(OURS)
    } == {
        name: (row.type, row.labels)
        for name, row in page.items()
        if name.startswith(OURS) and tier in row.tiers
    }
    for name, row in page.items():
        if tier in row.tiers and not name.startswith(OURS):
            own = {"engine", "model_name"} if name.startswith("vllm:") else set()
            assert types[name] == row.type, name
            assert shown[name] == row.labels | own, name


def test_the_tiers_say_that_they_are_up(service: Service, scrapes: dict[str, str]) -> None:
    assert service.value("decoder", "pixtral_decoder_engine_up") == 1
    assert service.value("gateway", "pixtral_gateway_permits_limit") > 0
    assert service.value("gateway", "pixtral_gateway_images_total", result="cached") >= 1
    assert service.value("encoder", "pixtral_encoder_queued_patches") == 0
