"""A small tier for the tests of the server code; each test passes its own handlers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2_grpc

from pixtral_core.server.channel import open_channel
from pixtral_core.server.process import running
from pixtral_core.settings import ProcessSettings

SERVICE = "test.Echo"

Context: TypeAlias = "grpc.aio.ServicerContext[StringValue, StringValue]"
StreamCall: TypeAlias = "grpc.aio.UnaryStreamCall[Any, StringValue]"
Handler = Callable[..., Any]


class EchoTier:
    """Serves the given handlers as Unary, Stream, Collect and Chat of test.Echo."""

    name = "echo"
    services: tuple[str, ...] = (SERVICE,)
    quiet: tuple[str, ...] = (f"{SERVICE}/Collect",)

    def __init__(
        self,
        unary: Handler | None = None,
        stream: Handler | None = None,
        collect: Handler | None = None,
        chat: Handler | None = None,
    ) -> None:
        self.stopped = False
        kinds = {
            "Unary": (unary, grpc.unary_unary_rpc_method_handler),
            "Stream": (stream, grpc.unary_stream_rpc_method_handler),
            "Collect": (collect, grpc.stream_unary_rpc_method_handler),
            "Chat": (chat, grpc.stream_stream_rpc_method_handler),
        }
        self._handlers = {
            name: make(handler, StringValue.FromString, StringValue.SerializeToString)
            for name, (handler, make) in kinds.items()
            if handler is not None
        }

    def register(self, server: grpc.aio.Server) -> None:
        handler = grpc.method_handlers_generic_handler(SERVICE, self._handlers)
        server.add_generic_rpc_handlers((handler,))

    async def start(self) -> None:
        pass

    async def failed(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> None:
        self.stopped = True


class EchoStub:
    """Calls the four methods. The `raw` ones send bytes unchanged."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        write, read = StringValue.SerializeToString, StringValue.FromString
        self.unary = channel.unary_unary(f"/{SERVICE}/Unary", write, read)
        self.stream = channel.unary_stream(f"/{SERVICE}/Stream", write, read)
        self.collect = channel.stream_unary(f"/{SERVICE}/Collect", write, read)
        self.chat = channel.stream_stream(f"/{SERVICE}/Chat", write, read)
        self.raw_unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{SERVICE}/Unary"
        )
        self.raw_collect: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(
            f"/{SERVICE}/Collect"
        )
        self.unknown = channel.unary_unary(f"/{SERVICE}/Unknown", write, read)


async def read_message(call: StreamCall) -> StringValue:
    """The stream's next message; fails at its end."""
    message = await call.read()
    assert isinstance(message, StringValue)
    return message


def health_stub(channel: grpc.aio.Channel) -> Any:
    # The type stubs of gRPC's health service lack its methods.
    return health_pb2_grpc.HealthStub(channel)


@asynccontextmanager
async def echo(tier: EchoTier, settings: ProcessSettings | None = None) -> AsyncIterator[EchoStub]:
    async with (
        running(tier, settings or ProcessSettings()) as addresses,
        open_channel(addresses.grpc, None) as channel,
    ):
        yield EchoStub(channel)
