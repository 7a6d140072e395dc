"""The cheapest relay that grpc.aio allows: it passes the bytes of a stream on unchanged.

    python -m bench.bare_relay --decoder HOST:PORT

It also refuses a call in the cheapest way. Both are the base line of the gateway's cost.
"""

import asyncio
from typing import Any

import pixtral_core.server.grpc_polling  # noqa: F401  # isort: skip - before grpc, as in the gateway

import grpc
from pydantic import Field

from pixtral.internal.v1 import decoder_pb2
from pixtral_core.server.channel import open_channel
from pixtral_core.server.process import run
from pixtral_core.settings import Address, ProcessSettings, load

SERVICE = decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"].full_name
METHOD = f"/{SERVICE}/Generate"
REFUSED = "/bare.Relay/Refuse"


class Settings(ProcessSettings):
    """Settings of the relay."""

    decoder: Address = Field(description="host:port of the decoder.")


class BareRelay(grpc.GenericRpcHandler):
    name = "bare-relay"
    services: tuple[str, ...] = ()
    quiet: tuple[str, ...] = (METHOD.removeprefix("/"), REFUSED.removeprefix("/"))

    def __init__(self, settings: Settings) -> None:
        self._decoder = settings.decoder
        self._generate: Any

    def register(self, server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((self,))

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        body = {METHOD: self._relay, REFUSED: _refuse}.get(details.method)
        return None if body is None else grpc.unary_stream_rpc_method_handler(body)

    async def _relay(self, request: bytes, context: Any) -> None:
        async for response in self._generate(request):
            await context.write(response)

    async def start(self) -> None:
        self._generate = open_channel(self._decoder, None).unary_stream(METHOD)

    async def failed(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> None:
        pass


async def _refuse(request: bytes, context: Any) -> None:
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED)


if __name__ == "__main__":
    run(BareRelay, load(Settings, prog="bare-relay"))
