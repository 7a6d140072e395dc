import socket
import threading
import urllib.request
from importlib import metadata

import pytest
from prometheus_client import Counter, Gauge

from pixtral_core.errors import StartupError
from pixtral_core.telemetry import metrics
from pixtral_core.telemetry.metrics import start_metrics_server


def test_scrape_names_the_release_and_holds_no_times_of_creation() -> None:
    Counter("test_scrapes_total", "counts for this test").inc()
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


def test_connections_that_say_nothing_keep_neither_threads_nor_a_scraper(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = start_metrics_server("127.0.0.1:0")
    before = threading.active_count()
    host, _, port = server.address.rpartition(":")
    silent = [socket.create_connection((host, int(port)), timeout=60) for _ in range(100)]
    try:
        for _ in range(3):
            url = f"http://{server.address}/metrics"
            with urllib.request.urlopen(url, timeout=60) as response:
                assert b"pixtral_build_info" in response.read()
        # The first ones have been ended.
        assert silent[0].recv(1) == b""
        assert threading.active_count() - before <= metrics.MAX_CONNECTIONS + 1
    finally:
        for each in silent:
            each.close()
        server.close()


def test_a_connection_that_says_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics._QuietHandler, "timeout", 0.1)
    server = start_metrics_server("[::1]:0" if socket.has_ipv6 else "127.0.0.1:0")
    host, _, port = server.address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=60) as silent:
            assert silent.recv(1) == b""
    finally:
        server.close()
