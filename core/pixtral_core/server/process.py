"""The life of a tier's process, from its first socket through the drain to its exit code."""

import asyncio
import faulthandler
import gc
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar, runtime_checkable

import grpc
import uvloop
from grpc_health.v1 import health_pb2_grpc

from pixtral_core.errors import StartupError
from pixtral_core.server import garbage, health
from pixtral_core.server.channel import MAX_MESSAGE_BYTES
from pixtral_core.server.grpc_interceptor import CallInterceptor, EarlyCheck, Gate
from pixtral_core.server.grpc_options import SERVER
from pixtral_core.server.health import NOT_SERVING, SERVING, Health, health_server
from pixtral_core.server.reflection import SERVICE_NAMES, serve_reflection
from pixtral_core.settings import ProcessSettings
from pixtral_core.telemetry.logs import configure_logging
from pixtral_core.telemetry.metrics import MetricsServer, count_tasks, start_metrics_server
from pixtral_core.telemetry.tracing import Tracer, start_tracing

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=ProcessSettings)

MAX_FILES = 1 << 20

# The most seconds that connections have to end, that cancelled calls or a cancelled start have to
# end, and that a tier has to stop.
GOAWAY_SECONDS = 0.2
CANCEL_SECONDS = 5.0
STOP_SECONDS = 30.0
# A thread that computes in Python delays the event loop by this much each time that the loop has
# work. With Python's own 5 ms these delays add up to seconds for a request that needs many turns.
SWITCH_SECONDS = 0.0005


class Tier(Protocol):
    """The part of a process that serves requests."""

    # The name of the process in traces, after "pixtral-".
    name: str
    # Full names of its services, for health and reflection.
    services: tuple[str, ...]
    # Methods (package.Service/Method) that others call all the time: they are neither logged nor
    # traced.
    quiet: tuple[str, ...]

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicers. They are called only between `start` and `stop`."""

    async def start(self) -> None:
        """Loads the tier. Until it returns, calls get UNAVAILABLE and health is NOT_SERVING.

        A signal cancels `start`. A StartupError is logged in one line, any other error with its
        traceback.
        """

    async def failed(self) -> None:
        """Returns when the process must end, for a reason that it has logged."""

    async def stop(self) -> None:
        """Frees everything. The process runs it after the drain, and after a `start` that failed or
        was cancelled."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of a process, host:port each, with the ports that it listens on.

    `http` is None if the process does not serve HTTP.
    """

    grpc: str
    metrics: str
    http: str | None = None


class SideServer(Protocol):
    """A server that a tier has beside gRPC. It opens, drains and closes with the tier."""

    async def open(self) -> str:
        """Binds and serves; returns host:port. Raises StartupError."""

    async def close(self) -> None:
        """Runs after the drain: ends all requests and connections that are left."""


@runtime_checkable
class ServesHttp(Protocol):
    """A tier that also serves HTTP."""

    def http_server(self, gate: Gate, tracer: Tracer) -> SideServer | None:
        """HTTP requests go through `gate` and `tracer`, as gRPC calls do."""


@runtime_checkable
class ChecksEarly(Protocol):
    """A tier that can refuse some calls before their messages are received."""

    def early_checks(self) -> Mapping[str, EarlyCheck]:
        """The checks by method, package.Service/Method."""


@asynccontextmanager
async def running(tier: Tier, settings: ProcessSettings) -> AsyncIterator[Addresses]:
    """The whole server in this process, ready on entry, drained and stopped on exit."""
    chassis = _Chassis(tier, settings)
    try:
        addresses = await chassis.open()
        await chassis.start()
        yield addresses
    finally:
        await chassis.close(settings.drain_seconds)


class StartupBarrier(Protocol):
    """Coordinates one of several processes on the same ports; `workers` implements it."""

    async def may_serve(self) -> None:
        """Returns once this process, which is loaded, may listen. Raises StartupError."""

    def serves(self) -> None:
        """Reports that the process serves."""


def run(
    tier_factory: Callable[[S], Tier], settings: S, in_turn: StartupBarrier | None = None
) -> NoReturn:
    """Serves until SIGTERM or SIGINT, then drains and exits 0. A second signal ends the process at
    once.

    Exits 1 if the tier cannot start or has failed. With `in_turn` the process is a worker: it
    listens only when it is loaded, and its parent shows its metrics.
    """
    # A crash in a library's machine code shows where each thread was.
    faulthandler.enable()
    configure_logging(settings.log_level, settings.log_format)
    raise_file_limit()
    sys.setswitchinterval(SWITCH_SECONDS)
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    outcome = runner.run(_serve(tier_factory, settings, in_turn))
    if outcome.start_cut_short:
        _leave_at_once(outcome.exit_code)
    runner.close()
    # Python searches for garbage once more at its exit, but not among frozen objects.
    gc.freeze()
    sys.exit(outcome.exit_code)


def raise_file_limit() -> None:
    """Raises the limit on open files, and thus on connections, as far as the system allows. It
    applies to this process and to those that it starts.

    The soft limit, often 1024, is for programs that call select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@dataclass(frozen=True, slots=True)
class _Outcome:
    exit_code: int
    start_cut_short: bool = False


async def _serve(
    tier_factory: Callable[[S], Tier], settings: S, in_turn: StartupBarrier | None
) -> _Outcome:
    stopping = asyncio.create_task(signalled())
    try:
        tier = tier_factory(settings)
        chassis = _Chassis(tier, settings, shares_ports=in_turn is not None, freezes=True)
    except Exception as error:
        return _cannot_start(error)
    drain_seconds = settings.drain_seconds
    try:
        if in_turn is None:
            addresses = await chassis.open()
            logger.info("gRPC on %s, metrics on %s", addresses.grpc, addresses.metrics)
            if addresses.http is not None:
                logger.info("HTTP on %s", addresses.http)
            starting = asyncio.create_task(chassis.start())
        else:
            starting = asyncio.create_task(_start_in_turn(chassis, in_turn))
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait((starting,), timeout=CANCEL_SECONDS)
            return _Outcome(0, start_cut_short=True)
        starting.result()
        logger.info("ready")
        failing = asyncio.create_task(tier.failed())
        await asyncio.wait((failing, stopping), return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            drain_seconds = min(drain_seconds, CANCEL_SECONDS)
            logger.error("the tier has failed", exc_info=failing.exception())
            return _Outcome(1)
        failing.cancel()
        return _Outcome(0)
    except Exception as error:
        return _cannot_start(error)
    finally:
        await chassis.close(drain_seconds)


async def _start_in_turn(chassis: "_Chassis", in_turn: StartupBarrier) -> None:
    # The worker loads before it listens. Otherwise the kernel would give it connections that it
    # cannot answer.
    await chassis.start()
    await in_turn.may_serve()
    await chassis.open()
    in_turn.serves()


def _cannot_start(error: Exception) -> _Outcome:
    if isinstance(error, StartupError):
        logger.error("cannot start: %s", error)
    else:
        logger.error("cannot start", exc_info=error)
    return _Outcome(1)


async def signalled() -> None:
    """Returns on the first signal; the second then has its default effect."""
    loop = asyncio.get_running_loop()
    received: asyncio.Future[signal.Signals] = loop.create_future()
    signals = (signal.SIGTERM, signal.SIGINT)

    def receive(number: signal.Signals) -> None:
        for each in signals:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        received.set_result(number)

    for each in signals:
        loop.add_signal_handler(each, receive, each)
    logger.info("%s: shutting down", (await received).name)


def _leave_at_once(exit_code: int) -> NoReturn:
    # A load that runs in a thread cannot be interrupted, and an ordinary exit would wait for it.
    for child in multiprocessing.active_children():
        child.terminate()
        child.join(CANCEL_SECONDS)
        child.kill()
    logging.shutdown()
    os._exit(exit_code)


class _Chassis:
    """`freezes` means that the process runs this tier alone, so that its loaded objects are never
    garbage."""

    def __init__(
        self,
        tier: Tier,
        settings: ProcessSettings,
        *,
        shares_ports: bool = False,
        freezes: bool = False,
    ) -> None:
        self._shares_ports = shares_ports
        self._freezes = freezes
        self._tier = tier
        self._settings = settings
        self._gate = Gate("the server is starting")
        self._health = Health(tier.services)
        self._metrics: MetricsServer | None = None
        self._counting: asyncio.Task[None] | None = None
        self._tracer = start_tracing(f"pixtral-{tier.name}")
        ungated = frozenset((health.SERVICE, *SERVICE_NAMES))
        interceptor = CallInterceptor(
            self._gate,
            ungated,
            frozenset(tier.quiet),
            self._tracer,
            tier.early_checks() if isinstance(tier, ChecksEarly) else {},
        )
        # Except for workers, a second process on the same port is a mistake.
        self._server = grpc.aio.server(
            interceptors=(interceptor,),
            options=(
                *SERVER,
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", int(shares_ports)),
            ),
        )
        tier.register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._health_server = health_server(self._health)
        serve_reflection((*tier.services, health.SERVICE), self._server)
        # gRPC uses the credentials at each handshake, and keeps no reference to them.
        self._credentials: grpc.ServerCredentials | None = None
        self._http: SideServer | None = None
        if isinstance(tier, ServesHttp):
            self._http = tier.http_server(self._gate, self._tracer)

    async def open(self) -> Addresses:
        """Listens, reports the addresses, and answers health checks. Raises StartupError.

        A worker has started before it opens, and shows no metrics.
        """
        if not self._shares_ports:
            self._metrics = start_metrics_server(self._settings.metrics_listen)
        certificate = self._settings.server_certificate
        self._credentials = certificate.credentials() if certificate else None
        addresses = Addresses(
            bind(self._server, self._settings.listen, self._credentials),
            self._metrics.address if self._metrics is not None else "",
            await self._http.open() if self._http is not None else None,
        )
        await self._server.start()
        self._counting = asyncio.create_task(count_tasks())
        if self._settings.health_listen is not None:
            bind(self._health_server, self._settings.health_listen, None)
            await self._health_server.start()
        if self._settings.address_file is not None:
            write_addresses(self._settings.address_file, addresses)
        return addresses

    async def start(self) -> None:
        await self._tier.start()
        if self._freezes:
            # A collection would look through all loaded objects, every few seconds under load, and
            # delay all requests for a tenth of a second.
            gc.collect()
            gc.freeze()
            garbage.search_as_usual()
        self._gate.open()
        self._health.set(SERVING)

    async def close(self, drain_seconds: float) -> None:
        """Sets NOT_SERVING, drains, then stops. Logs errors on the way, and raises none."""
        self._health.set(NOT_SERVING)
        # The server asks clients to end their connections and accepts no more, so that clients go
        # to other replicas. Over an open connection, a client would send calls until its next
        # look-up of addresses.
        ending = asyncio.create_task(self._server.stop(drain_seconds + CANCEL_SECONDS))
        # A call that was accepted just before may not have reached the gate yet.
        await asyncio.wait((ending,), timeout=GOAWAY_SECONDS)
        self._gate.shut("the server is shutting down")
        if not await self._gate.wait_idle(drain_seconds):
            logger.warning("cancelling calls that still run after %g s", drain_seconds)
        # This ends health watchers, which never end by themselves.
        await self._server.stop(GOAWAY_SECONDS)
        await ending
        if self._http is not None:
            await self._http.close()
        if not await self._gate.wait_idle(CANCEL_SECONDS):
            logger.error("cancelled calls have not ended")
        await self._health_server.stop(0)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._tier.stop()
        except Exception:
            logger.exception("the tier failed to stop")
        await self._tracer.close()
        if self._counting is not None:
            self._counting.cancel()
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)


def bind(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None) -> str:
    try:
        if credentials is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, credentials)
    except RuntimeError:
        raise StartupError(f"cannot listen on {listen}") from None
    return f"{listen.rpartition(':')[0]}:{port}"


def write_addresses(path: Path, addresses: Addresses) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        served = {server: at for server, at in asdict(addresses).items() if at is not None}
        unfinished.write_text(json.dumps(served) + "\n", "utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise StartupError(f"cannot write {path}: {error.strerror}") from None
