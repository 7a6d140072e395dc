"""Prometheus metrics of the gRPC server, and the HTTP server that shows a process's metrics."""

import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata
from socketserver import TCPServer, ThreadingMixIn
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

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

# These would double the number of series, and Prometheus does not use them.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

BUILD = Info("pixtral_build", "The release that this process runs")
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

# This gauge is the first to show tasks that nothing awaits and that never end.
TASKS = Gauge(
    "pixtral_asyncio_tasks",
    "Unfinished tasks of the event loop",
    multiprocess_mode="livesum",
)
TASKS_SECONDS = 2.0

# The number of simultaneous readers of the metrics, and the seconds that each of them may take to
# send a request.
MAX_CONNECTIONS = 16
SCRAPE_SECONDS = 10.0


async def count_tasks() -> None:
    """Counts tasks until it is cancelled."""
    while True:
        TASKS.set(len(asyncio.all_tasks()))
        await asyncio.sleep(TASKS_SECONDS)


class MetricsServer:
    """Serves the default registry over HTTP, in its own thread, until `close`."""

    def __init__(self, address: str, server: WSGIServer, thread: Thread) -> None:
        self.address = address
        self._server = server
        self._thread = thread

    def close(self) -> None:
        """Blocks until the thread has ended."""
        shutdown = Thread(target=self._server.shutdown)
        shutdown.start()
        # Twice a second, and at each new connection, the thread checks whether it should end.
        while shutdown.is_alive():
            with suppress(OSError):
                address = self._server.socket.getsockname()[:2]
                socket.create_connection(address, timeout=1).close()
            shutdown.join(0.01)
        self._server.server_close()
        self._thread.join()


class _Workers(Collector):
    """The memory of all workers' processes together."""

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
    """A registry with the summed counts of the workers that write to `directory`, including workers
    that have died."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]
    registry.register(BUILD)
    registry.register(_Workers(pids))
    return registry


def start_metrics_server(listen: str, registry: CollectorRegistry = REGISTRY) -> MetricsServer:
    """Serves on `listen` (host:port). Port 0 takes a free port, which `address` of the result
    shows.

    Raises StartupError if it cannot listen on the address.
    """
    host, _, port = listen.rpartition(":")
    try:
        server = _BoundedServer((host.strip("[]"), int(port)), _QuietHandler)
    except OSError as error:
        raise StartupError(f"cannot serve metrics on {listen}: {error.strerror}") from None
    server.set_app(_in_plain_text(prometheus_client.make_wsgi_app(registry)))
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    return MetricsServer(f"{host}:{server.server_port}", server, thread)


class _QuietHandler(WSGIRequestHandler):
    # The seconds of each wait for the client.
    timeout = SCRAPE_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
        pass


class _BoundedServer(ThreadingMixIn, WSGIServer):
    """Each connection has a thread, and the number of connections is small. If there is one too
    many, the oldest one is closed, so that silent connections do not keep a scraper out."""

    daemon_threads = True
    # Otherwise the server would keep a reference to each connection's thread, and wait for it at
    # the end.
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._connections: dict[socket.socket, None] = {}
        self._lock = Lock()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # HTTPServer's own method looks up the name of the host.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._connections) >= MAX_CONNECTIONS:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            self._connections[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs nothing: a client that leaves, or sends nothing, is not an error."""


def _in_plain_text(app: "WSGIApplication") -> "WSGIApplication":
    # If a scraper accepts OpenMetrics, as Prometheus does, prometheus_client writes `vllm_` in
    # place of `vllm:` in names such as `vllm:num_requests_running`, and dashboards do not find
    # them.
    def plain(environ: "WSGIEnvironment", start_response: "StartResponse") -> "Iterable[bytes]":
        return app({**environ, "HTTP_ACCEPT": "text/plain"}, start_response)

    return plain
