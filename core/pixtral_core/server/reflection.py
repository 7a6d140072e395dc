"""Serves gRPC reflection as v1, which clients try first, and as v1alpha, which older clients
know."""

from collections.abc import Iterable

import grpc
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1ALPHA: str = reflection.SERVICE_NAME
V1 = V1ALPHA.replace(".v1alpha.", ".v1.")
SERVICE_NAMES = (V1, V1ALPHA)


def serve_reflection(services: Iterable[str], server: grpc.aio.Server) -> None:
    """Adds both services. They list `services`, which are full names, and themselves."""
    _describe_v1()
    servicer = reflection.aio.ReflectionServicer((*services, *SERVICE_NAMES))
    # grpcio-reflection has v1alpha alone. The messages of v1 are the same bytes.
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
            for name in SERVICE_NAMES
        ]
    )


def _describe_v1() -> None:
    """Lets clients look up the v1 service itself, as clients do that describe all services."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(V1)
    except KeyError:
        alpha = FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
        # Only the package's name differs in its types.
        text = text_format.MessageToString(alpha).replace("v1alpha", "v1")
        file = text_format.Parse(text, FileDescriptorProto())
        file.options.ClearField("deprecated")
        pool.AddSerializedFile(file.SerializeToString())
