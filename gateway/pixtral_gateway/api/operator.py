"""The routes for probes and operators: health, load and metrics."""

import asyncio
import os
from collections.abc import Callable

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pixtral_core.errors import Unavailable
from pixtral_core.server.grpc_interceptor import Gate
from pixtral_core.telemetry.metrics import metrics_of
from pixtral_gateway.api.http.front import Front
from pixtral_gateway.api.openai.response_schema import Load

METRICS = "/metrics"
# Probes request these all the time, and get an answer while the gateway is not ready.
QUIET = frozenset({"/health", "/ping", METRICS})


class OperatorApi:
    def __init__(self, front: Front, gate: Gate) -> None:
        self._front = front
        self._gate = gate

    def routes(self) -> list[Route]:
        """The routes, with `/metrics` only if the gateway serves its own machine alone."""
        shown = self._front.settings.is_for_this_machine
        return [
            Route("/health", self.health),
            # SageMaker's probe.
            Route("/ping", self.ping, methods=["GET", "POST"]),
            Route("/load", self.load),
            *([Route(METRICS, self.metrics)] if shown else []),
        ]

    async def health(self, request: Request) -> Response:
        if not self._gate.is_open:
            raise Unavailable("the server is not ready")
        return Response()

    async def ping(self, request: Request) -> Response:
        return await self.health(request)

    async def load(self, request: Request) -> JSONResponse:
        self._front.tenant(request)
        answer: Load = {"server_load": self._front.backend.admission.in_use}
        return JSONResponse(answer)

    async def metrics(self, request: Request) -> PlainTextResponse:
        self._front.tenant(request)
        page = await asyncio.to_thread(generate_latest, _registry())
        return PlainTextResponse(page, media_type="text/plain; version=0.0.4")


def _registry(environment: Callable[[str], str | None] = os.environ.get) -> CollectorRegistry:
    """The metrics of this process, or of all workers if it is one of several."""
    directory = environment("PROMETHEUS_MULTIPROC_DIR")
    return REGISTRY if directory is None else metrics_of(directory, tuple)
