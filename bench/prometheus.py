"""Runs a real Prometheus beside a stack, and queries it."""

import contextlib
import json
import math
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.expressions import RULES
from tools.promtool import find

START_SECONDS = 30.0
SCRAPE_SECONDS = 5


def filled(expression: str) -> str:
    """A panel's query as Grafana would send it, for all namespaces."""
    return expression.replace("$namespace", ".*").replace("$__rate_interval", "1m")


class Prometheus:
    """The HTTP API of a Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/{path}?{query}", timeout=30) as response:
            return json.load(response)

    def numbers(self, expression: str, at: float) -> list[float]:
        found = self.get("api/v1/query", query=expression, time=str(at))
        values = (float(series["value"][1]) for series in found["data"]["result"])
        return [value for value in values if not math.isnan(value)]

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1):
                return True
        except (urllib.error.URLError, OSError):
            return False


@contextlib.contextmanager
def prometheus(targets: dict[str, str]) -> Iterator[Prometheus]:
    """Runs a Prometheus that scrapes `targets` (host:port by tier) and evaluates the rules."""
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "prometheus.yaml")
        config.write_text(json.dumps(configuration(targets)), "utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        log = Path(directory, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    find("prometheus"),
                    f"--config.file={config}",
                    f"--storage.tsdb.path={directory}/data",
                    f"--web.listen-address={address}",
                ],
                stdout=output,
                stderr=output,
            )
        try:
            server = Prometheus(f"http://{address}")
            deadline = time.monotonic() + START_SECONDS
            while not server.is_ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"Prometheus does not start:\n{log.read_text('utf-8')}")
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            process.wait()


def configuration(targets: dict[str, str]) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": f"pixtral-{tier}", "static_configs": [{"targets": [address]}]}
            for tier, address in targets.items()
        ],
    }
