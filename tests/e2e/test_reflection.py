"""A client that has no protos learns the service from its reflection."""

from typing import Any

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tests.support.stack.service import Service

NAME = "pixtral.v1.ChatService"
SECONDS = 60


def call(channel: grpc.Channel, method: MethodDescriptor, fields: dict[str, Any]) -> list[Any]:
    """The responses of a method, as JSON has them; a stream has several."""
    request_class = message_factory.GetMessageClass(method.input_type)
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    ask = kind(
        f"/{NAME}/{method.name}",
        request_serializer=request_class.SerializeToString,
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )
    answered: Any = ask(json_format.ParseDict(fields, request_class()), timeout=SECONDS)
    responses = answered if method.server_streaming else [answered]
    return [json_format.MessageToDict(response) for response in responses]


def test_a_client_without_protos_lists_models_and_reads_an_answer(service: Service) -> None:
    with grpc.insecure_channel(service.stack.target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert NAME in database.get_services()
        pool = descriptor_pool.DescriptorPool(database)
        methods: ServiceDescriptor = pool.FindServiceByName(NAME)

        (models,) = call(channel, methods.methods_by_name["ListModels"], {})
        assert [model["name"] for model in models["models"]] == ["random-pixtral"]

        chat = {
            "messages": [{"role": "ROLE_USER", "content": [{"text": "What is this?"}]}],
            "sampling": {"maxTokens": 5, "temperature": 0, "ignoreEos": True},
        }
        (whole,) = call(channel, methods.methods_by_name["Complete"], {"chat": chat})
        *deltas, last = call(channel, methods.methods_by_name["StreamComplete"], {"chat": chat})
        (choice,) = whole["choices"]
        assert "".join(each["delta"].get("text", "") for each in deltas) == choice["text"]
        assert last["completion"]["usage"] == whole["completion"]["usage"]
