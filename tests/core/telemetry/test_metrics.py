import urllib.request
from importlib import metadata

import pytest
from prometheus_client import Counter, Gauge

from pixtral_core.errors import StartupError
from pixtral_core.telemetry.metrics import start_metrics_server


def test_scrape_names_the_release_and_holds_no_times_of_creation() -> None:
    Counter("test_scrapes_total", "of this test").inc()
    server = start_metrics_server("127.0.0.1:0")
    try:
        with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=60) as response:
            lines = response.read().decode().splitlines()
    finally:
        server.close()
    assert f'pixtral_build_info{{version="{metadata.version("pixtral-serve")}"}} 1.0' in lines
    assert "test_scrapes_total 1.0" in lines
    assert not any("_created" in line for line in lines)


def test_names_are_those_of_the_page_for_a_scraper_that_takes_openmetrics_too() -> None:
    Gauge("vllm:test_waiting", "with a colon, as vLLM's are").set(3)
    server = start_metrics_server("127.0.0.1:0")
    try:
        request = urllib.request.Request(
            f"http://{server.address}/metrics",
            headers={"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            assert "vllm:test_waiting 3.0" in response.read().decode().splitlines()
    finally:
        server.close()


def test_taken_port_is_told_in_one_line() -> None:
    server = start_metrics_server("127.0.0.1:0")
    try:
        with pytest.raises(StartupError, match="cannot serve metrics"):
            start_metrics_server(server.address)
    finally:
        server.close()
