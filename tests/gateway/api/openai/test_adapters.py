"""Adapters of the model, where one of two decoders has them, over gRPC and HTTP."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import httpx
import pytest

from pixtral.v1 import chat_pb2
from pixtral_core.errors import from_rpc_error
from tests.support.fake_tiers import FakeDecoder
from tests.support.gateway_harness import Client
from tests.support.gateway_pictures import text, user

QUESTIONS = [user(text(f"What is {number}?")) for number in range(8)]


@pytest.fixture
async def decoders() -> AsyncIterator[list[FakeDecoder]]:
    servers = [await FakeDecoder.started() for _ in range(2)]
    servers[1].adapters = ("poet", "clerk")
    yield servers
    for server in servers:
        await server.stop()


@pytest.fixture(autouse=True)
async def known(client: Client) -> None:
    """The decoder that has adapters has shaken hands; a gateway is ready with any one of them."""
    async with asyncio.timeout(60):
        while "poet" not in await names(client):
            await asyncio.sleep(0.01)


async def names(client: Client) -> set[str]:
    listed = await client.stub.ListModels(chat_pb2.ListModelsRequest())
    return {model.name for model in listed.models}


async def test_only_a_decoder_that_has_it_is_asked(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    for question in QUESTIONS:
        answer = await client.stub.Complete(
            chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[question], model="poet"))
        )
        assert answer.model == "poet"
    without, having = decoders
    assert not without.calls
    assert [call.adapter for call in having.calls] == ["poet"] * len(QUESTIONS)

    # A gateway may hear from the other decoder a moment later.
    async with asyncio.timeout(60):
        while not without.calls:
            for question in QUESTIONS:
                answer = await client.stub.Complete(
                    chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[question]))
                )
                assert answer.model == "pixtral-small"
    assert not any(call.adapter for call in without.calls)


async def test_a_stream_and_http_name_the_adapter(
    client: Client, http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    request = chat_pb2.StreamCompleteRequest(
        chat=chat_pb2.Chat(messages=QUESTIONS[:1], model="clerk")
    )
    assert {event.model async for event in client.stub.StreamComplete(request)} == {"clerk"}

    body = {"messages": [{"role": "user", "content": "What?"}], "model": "poet"}
    answer = (await http.post("/v1/chat/completions", json=body)).json()
    assert answer["model"] == "poet"
    assert [call.adapter for call in decoders[1].calls] == ["clerk", "poet"]
    counted = await client.stub.CountTokens(
        chat_pb2.CountTokensRequest(chat=chat_pb2.Chat(messages=QUESTIONS[:1], model="poet"))
    )
    assert counted.prompt_tokens


async def test_they_are_listed_beside_their_model(client: Client, http: httpx.AsyncClient) -> None:
    listed = await client.stub.ListModels(chat_pb2.ListModelsRequest())
    named = [(model.name, model.parent) for model in listed.models]
    assert named == [
        ("pixtral-small", ""),
        ("clerk", "pixtral-small"),
        ("poet", "pixtral-small"),
    ]
    cards = (await http.get("/v1/models")).json()["data"]
    assert [(card["id"], card["parent"] or "") for card in cards] == named
    assert (await http.get("/v1/models/poet")).json() == cards[2]


async def test_another_name_is_not_found(client: Client, http: httpx.AsyncClient) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.stub.Complete(
            chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=QUESTIONS[:1], model="bard"))
        )
    refusal = from_rpc_error(refused.value)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert (await http.get("/v1/models/bard")).status_code == 404


async def test_without_its_decoder_it_is_unavailable(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    await decoders[1].stop()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.stub.Complete(
            chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=QUESTIONS[:1], model="poet"))
        )
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
