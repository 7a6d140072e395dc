"""A process describes itself to clients of reflection v1 and of v1alpha alike."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.wrappers_pb2 import StringValue

from pixtral_core.server.channel import open_channel
from pixtral_core.server.process import running
from pixtral_core.settings import ProcessSettings
from tests.support.echo_tier import SERVICE, Context, EchoTier

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
HEALTH = "grpc.health.v1.Health"


async def upper(request: StringValue, context: Context) -> StringValue:
    return StringValue(value=request.value.upper())


async def asked(channel: grpc.aio.Channel, service: str, **question: str) -> Any:
    """The answer to one question, in the classes that belong to this service."""
    descriptor: Any = descriptor_pool.Default().FindServiceByName(service)
    method = descriptor.methods_by_name["ServerReflectionInfo"]
    request_class = message_factory.GetMessageClass(method.input_type)

    async def requests() -> AsyncIterator[Any]:
        yield request_class(**question)

    call: Any = channel.stream_stream(
        f"/{service}/{method.name}",
        request_serializer=request_class.SerializeToString,
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )
    [response] = [each async for each in call(requests(), timeout=20)]
    assert response.original_request == request_class(**question)
    return response


@pytest.mark.parametrize("service", [V1, V1ALPHA])
async def test_a_client_lists_the_services_and_reads_their_files(service: str) -> None:
    async with (
        running(EchoTier(unary=upper), ProcessSettings()) as addresses,
        open_channel(addresses.grpc, None) as channel,
    ):
        listed = (await asked(channel, service, list_services="")).list_services_response.service
        assert {each.name for each in listed} == {SERVICE, HEALTH, V1, V1ALPHA}
        for name in (HEALTH, V1, V1ALPHA):
            answer = await asked(channel, service, file_containing_symbol=name)
            [file] = answer.file_descriptor_response.file_descriptor_proto
            assert FileDescriptorProto.FromString(file).package == name.rpartition(".")[0]


@pytest.mark.parametrize("service", [V1, V1ALPHA])
async def test_a_client_learns_that_a_name_is_unknown(service: str) -> None:
    async with (
        running(EchoTier(unary=upper), ProcessSettings()) as addresses,
        open_channel(addresses.grpc, None) as channel,
    ):
        answer = await asked(channel, service, file_containing_symbol="no.such.Service")
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
