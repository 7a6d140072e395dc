"""Prometheus metrics of the gRPC server, and the HTTP server that shows a process's metrics."""

import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata
from threading import Thread
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer

import prometheus_client
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
    multiprocess,
)
from prometheus_client.registry import Collector

from pixtral_core.errors import StartupError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

# Twice the series, and nothing that Prometheus reads.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

BUILD = Info("pixtral_build", "Which release this process runs")
with suppress(metadata.PackageNotFoundError):
    BUILD.info({"version": metadata.version("pixtral-serve")})

# The names and labels are those of the gRPC ecosystem's own Prometheus middlewares.
_METHOD = ["grpc_type", "grpc_service", "grpc_method"]

STARTED = Counter("grpc_server_started_total", "RPCs started", _METHOD)
HANDLED = Counter(
    "grpc_server_handled_total", "RPCs completed, by status code", [*_METHOD, "grpc_code"]
)
SECONDS = Histogram(
    "grpc_server_handling_seconds",
    "Time from the start of an RPC's handler to its end",
    _METHOD,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)

# What is awaited by nobody and never ends shows here first.
TASKS = Gauge(
    "pixtral_asyncio_tasks",
    "Tasks of the event loop that are not over",
    multiprocess_mode="livesum",
)
TASKS_SECONDS = 2.0


async def count_tasks() -> None:
    """Until it is cancelled."""
    while True:
        TASKS.set(len(asyncio.all_tasks()))
        await asyncio.sleep(TASKS_SECONDS)


class MetricsServer:
    """The default registry over HTTP, in a thread of its own, until `close`."""

    def __init__(self, address: str, server: WSGIServer, thread: Thread) -> None:
        self.address = address
        self._server = server
        self._thread = thread

    def close(self) -> None:
        """Blocks until the thread has ended."""
        shutdown = Thread(target=self._server.shutdown)
        shutdown.start()
        # The thread looks whether it should end twice a second, or when somebody connects.
        while shutdown.is_alive():
            with suppress(OSError):
                address = self._server.socket.getsockname()[:2]
                socket.create_connection(address, timeout=1).close()
            shutdown.join(0.01)
        self._server.server_close()
        self._thread.join()


class _Workers(Collector):
    """What all workers' processes take together."""

    def __init__(self, pids: Callable[[], Sequence[int]]) -> None:
        self._pids = pids

    def collect(self) -> Iterable[Metric]:
        summed: dict[str, Metric] = {}
        for pid in self._pids():
            for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                seen = summed.setdefault(metric.name, metric)
                if seen is metric:
                    continue
                (one,), (other,) = seen.samples, metric.samples
                both = one.value, other.value
                value = min(both) if metric.name == "process_start_time_seconds" else sum(both)
                seen.samples = [one._replace(value=value)]
        return summed.values()


def metrics_of(directory: str, pids: Callable[[], Sequence[int]]) -> CollectorRegistry:
    """What the workers that write to `directory` count, those that have died too; one page."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]
    registry.register(BUILD)
    registry.register(_Workers(pids))
    return registry


def start_metrics_server(listen: str, registry: CollectorRegistry = REGISTRY) -> MetricsServer:
    """Serves on `listen` (host:port; port 0 takes a free one, told in `address`).

    Raises StartupError where the address cannot be bound.
    """
    host, _, port = listen.rpartition(":")
    try:
        server, thread = prometheus_client.start_http_server(int(port), host.strip("[]"))
    except OSError as error:
        raise StartupError(f"cannot serve metrics on {listen}: {error.strerror}") from None
    server.set_app(_in_plain_text(prometheus_client.make_wsgi_app(registry)))
    return MetricsServer(f"{host}:{server.server_port}", server, thread)


def _in_plain_text(app: "WSGIApplication") -> "WSGIApplication":
    # To whoever takes OpenMetrics, as Prometheus does, prometheus_client writes the samples of
    # `vllm:num_requests_running` and its like with `vllm_`: names that nobody asks for.
    def plain(environ: "WSGIEnvironment", start_response: "StartResponse") -> "Iterable[bytes]":
        return app({**environ, "HTTP_ACCEPT": "text/plain"}, start_response)

    return plain
