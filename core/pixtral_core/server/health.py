"""gRPC's health service, with a limited number of watchers, which delay no other call."""
# ruff: noqa: N802 - methods have the names of the proto

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pixtral_core.server.grpc_interceptor import MAX_UNGATED_BYTES
from pixtral_core.server.grpc_options import SERVER
from pixtral_core.server.socket_bytes import host_of

if TYPE_CHECKING:
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext

SERVICE: Final[str] = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING

OPTIONS: Final = (
    *SERVER,
    ("grpc.max_receive_message_length", MAX_UNGATED_BYTES),
    ("grpc.so_reuseport", 0),
)
MAX_WATCHERS: Final = 1000
MAX_WATCHERS_OF_A_HOST: Final = 100


class Health(health_pb2_grpc.HealthServicer):
    """The health of a process, which is also that of its services.

    `Watch` refuses the name of a service that the process does not have, as `Check` does. gRPC's
    own servicer would store the name and report SERVICE_UNKNOWN until the service is added, but
    this process adds no service later.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._names = frozenset(("", *services))
        self._status: int = NOT_SERVING
        self._changed = asyncio.Event()
        self._watchers = Counter[str]()

    def set(self, status: int) -> None:
        self._status = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        await self._check_name(request, context)
        return health_pb2.HealthCheckResponse(status=self._status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        await self._check_name(request, context)
        del request
        host = host_of(context.peer())
        most = MAX_WATCHERS_OF_A_HOST
        if self._watchers[host] >= most or self._watchers.total() >= MAX_WATCHERS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"at most {most} watchers from one address, and {MAX_WATCHERS} in all",
            )
        self._watchers[host] += 1
        try:
            while True:
                status, changed = self._status, self._changed
                yield health_pb2.HealthCheckResponse(status=status)
                while self._status == status:
                    await changed.wait()
                    changed = self._changed
        finally:
            self._watchers[host] -= 1
            if not self._watchers[host]:
                del self._watchers[host]

    async def _check_name(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this process has no such service")


def health_server(health: Health) -> grpc.aio.Server:
    """A server for health checks alone, for clients that have no certificate."""
    server = grpc.aio.server(options=OPTIONS)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    return server
