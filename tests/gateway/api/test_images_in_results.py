"""Images in the results of tool calls, in each API and by the version of the tokenizer."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from tests.support.fake_tiers import FakeDecoder
from tests.support.gateway_harness import Client
from tests.support.gateway_pictures import calls, image, picture, result, text, user

CAT, DOG = picture(40, 30, seed=1), picture(16, 50, seed=2)
IDS = ("abcdefgh1", "abcdefgh2")
QUESTION, SAID = "Which is larger?", "It looks so:"
CONVERSATION = [
    user(text(QUESTION)),
    calls(*((call_id, "look", "{}") for call_id in IDS)),
    # In another order than the calls.
    result(IDS[1], text(SAID), image(DOG)),
    result(IDS[0], text(SAID), image(CAT)),
]


@pytest.fixture
def prompts(request: pytest.FixtureRequest, spec: VisionSpec) -> PromptEncoder:
    """Those of version 15, unless a test names another fixture of a model."""
    directory: Path = request.getfixturevalue(getattr(request, "param", "v15_model_dir"))
    return PromptEncoder.load(directory, spec)


async def test_each_result_keeps_its_image_in_the_order_of_the_calls(
    client: Client, decoders: list[FakeDecoder], spec: VisionSpec
) -> None:
    chat = chat_pb2.Chat(messages=CONVERSATION)
    answer = await client.stub.Complete(chat_pb2.CompleteRequest(chat=chat))

    call = last_call(decoders)
    grids = (spec.grid(40, 30), spec.grid(16, 50))
    for shown, data, grid in zip(call.images, (CAT, DOG), grids, strict=True):
        assert shown.key.image_sha256 == hashlib.sha256(data).digest()
        assert (shown.rows, shown.cols) == (grid.rows, grid.cols)
        assert call.prompt_token_ids[shown.offset] == spec.image_token_id
    assert [each.sha256 for each in answer.completion.images] == [
        hashlib.sha256(data).hexdigest() for data in (CAT, DOG)
    ]


async def test_openais_chat_has_them_in_the_same_prompt(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    chat = chat_pb2.Chat(messages=CONVERSATION)
    await client.stub.Complete(chat_pb2.CompleteRequest(chat=chat))
    expected = last_call(decoders)
    response = await asked(client, "/v1/chat/completions", messages=openais())

    assert response.status_code == 200, response.text
    call = last_call(decoders)
    assert call.prompt_token_ids == expected.prompt_token_ids
    assert call.images == expected.images


@pytest.mark.parametrize("prompts", ["model_dir"], indirect=True)
async def test_an_older_template_has_no_place_for_them(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    response = await asked(client, "/v1/chat/completions", messages=openais())
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "messages.2.content.1"
    assert "send the image in a user message after it" in error["message"]

    request = chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=CONVERSATION))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.stub.Complete(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not any(decoder.calls for decoder in decoders)


async def test_images_come_in_a_user_message_after_the_results_as_with_vllm(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    blocks = [{"type": "tool_use", "id": each, "name": "look", "input": {}} for each in IDS]
    results = [
        {"type": "tool_result", "tool_use_id": each, "content": [said(), anthropics(data)]}
        for each, data in zip(IDS, (CAT, DOG), strict=True)
    ]
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": results},
    ]
    response = await asked(client, "/v1/messages", messages=messages, max_tokens=5)
    assert response.status_code == 200, response.text
    call = last_call(decoders)

    alone = [*CONVERSATION[:2], *(result(each, text(SAID)) for each in IDS)]
    chat = chat_pb2.Chat(messages=[*alone, user(image(CAT), image(DOG))])
    await client.stub.Complete(chat_pb2.CompleteRequest(chat=chat))
    assert call.prompt_token_ids == last_call(decoders).prompt_token_ids


async def asked(client: Client, path: str, **fields: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=client.url) as http:
        return await http.post(path, json=fields)


def last_call(decoders: list[FakeDecoder]) -> decoder_pb2.GenerateRequest:
    (call,) = [decoder.calls.pop() for decoder in decoders if decoder.calls]
    return call


def openais() -> list[dict[str, Any]]:
    made = [{"id": each, "function": {"name": "look", "arguments": "{}"}} for each in IDS]
    return [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "", "tool_calls": made},
        *(
            {"role": "tool", "tool_call_id": each, "content": [said(), openais_image(data)]}
            for each, data in ((IDS[1], DOG), (IDS[0], CAT))
        ),
    ]


def said() -> dict[str, Any]:
    return {"type": "text", "text": SAID}


def openais_image(data: bytes) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def anthropics(data: bytes) -> dict[str, Any]:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(data).decode()}
    return {"type": "image", "source": source}
