"""Bad input is refused by name, leaves nothing behind, and disturbs nobody."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from PIL import Image

from pixtral.v1 import chat_pb2, chat_pb2_grpc
from pixtral_client import InvalidRequest, NotFound
from pixtral_client.errors import from_rpc_error
from tests.support.redis_server import RedisServer
from tests.support.stack.new_picture import new_picture
from tests.support.stack.service import Service

USER, ASSISTANT, TOOL = chat_pb2.ROLE_USER, chat_pb2.ROLE_ASSISTANT, chat_pb2.ROLE_TOOL


def text(value: str) -> chat_pb2.ContentPart:
    return chat_pb2.ContentPart(text=value)


def image(data: bytes) -> chat_pb2.ContentPart:
    return chat_pb2.ContentPart(image=chat_pb2.Image(data=data))


def turn(role: Any, *parts: chat_pb2.ContentPart) -> chat_pb2.Message:
    return chat_pb2.Message(role=role, content=parts)


def request(*messages: chat_pb2.Message, **fields: Any) -> chat_pb2.CompleteRequest:
    return chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=messages, **fields))


def png_header(width: int, height: int) -> bytes:
    """A PNG that says its size and has no pixels."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    idat = b"IDAT" + zlib.compress(b"\0")
    chunks += struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat))
    return b"\x89PNG\r\n\x1a\n" + chunks


def truncated_jpeg() -> bytes:
    whole = new_picture(400, 300, "JPEG")
    return whole[: len(whole) // 2]


def too_many_bytes() -> bytes:
    out = io.BytesIO()
    Image.effect_noise((1400, 1400), 90).save(out, "PNG")
    assert out.tell() > 1_000_000
    return out.getvalue()


LOOK = text("What is this?")
DATA = "messages[0].content[0].image.data"
BAD: dict[str, tuple[Callable[[], chat_pb2.CompleteRequest], str]] = {
    "no messages": (lambda: request(), "messages"),
    "a result of nothing": (
        lambda: request(
            turn(USER, LOOK), chat_pb2.Message(role=TOOL, content=[LOOK], tool_call_id="a")
        ),
        "messages[1].role",
    ),
    "no role": (lambda: request(turn(0, LOOK)), "messages[0].role"),
    "an answer last": (
        lambda: request(turn(USER, LOOK), turn(ASSISTANT, text("Yes."))),
        "messages[1].role",
    ),
    "not an image": (lambda: request(turn(USER, image(b"GIF, it says"), LOOK)), DATA),
    "a truncated JPEG": (lambda: request(turn(USER, image(truncated_jpeg()), LOOK)), DATA),
    "a header of 50,000 x 50,000": (
        lambda: request(turn(USER, image(png_header(50_000, 50_000)), LOOK)),
        DATA,
    ),
    "0 bytes": (lambda: request(turn(USER, image(b""), LOOK)), DATA),
    "over the byte cap": (lambda: request(turn(USER, image(too_many_bytes()), LOOK)), DATA),
    "too many images": (
        lambda: request(turn(USER, *(image(new_picture()) for _ in range(7)), LOOK)),
        "messages",
    ),
    "longer than the context": (lambda: request(turn(USER, text("word " * 40_000))), "messages"),
    "a temperature of -1": (
        lambda: request(turn(USER, LOOK), sampling=chat_pb2.SamplingParams(temperature=-1)),
        "sampling.temperature",
    ),
    "a temperature that is no number": (
        lambda: request(
            turn(USER, LOOK), sampling=chat_pb2.SamplingParams(temperature=float("nan"))
        ),
        "sampling.temperature",
    ),
}


def call(service: Service, message: chat_pb2.CompleteRequest) -> chat_pb2.CompleteResponse:
    with grpc.insecure_channel(service.stack.target) as channel:
        try:
            return chat_pb2_grpc.ChatServiceStub(channel).Complete(message, timeout=60)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_by_field(service: Service, redis: RedisServer, what: str) -> None:
    make, path = BAD[what]
    with redis.client() as cache:
        stored, encoded = cache.dbsize(), service.encoded()
        with pytest.raises(InvalidRequest) as refusal:
            call(service, make())
        assert cache.dbsize() == stored
    assert service.encoded() == encoded
    assert [violation.field for violation in refusal.value.violations] == [path]
    assert refusal.value.code is grpc.StatusCode.INVALID_ARGUMENT
    good = request(turn(USER, LOOK), sampling=chat_pb2.SamplingParams(max_tokens=2))
    assert call(service, good).completion.usage.completion_tokens > 0


def test_a_wrong_model_is_not_found(service: Service) -> None:
    with pytest.raises(NotFound) as refusal:
        call(service, request(turn(USER, LOOK), model="gpt-2"))
    assert refusal.value.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("control", ["[IMG]", "[IMG_END]", "[INST]", "[/INST]", "</s>", "<s>"])
def test_text_that_spells_a_control_token_is_text(
    service: Service, checkpoint: Path, control: str
) -> None:
    tekken = Tekkenizer.from_file(checkpoint / "tekken.json")
    said, other = f"Is {control} a word?", "Hello."
    counts = [
        service.client.count_tokens([{"role": "user", "content": content}])
        for content in (said, other)
    ]
    pieces = [tekken.encode(content, bos=False, eos=False) for content in (said, other)]
    assert min(pieces[0]) >= tekken.num_special_tokens
    assert counts[0].image_tokens == 0
    assert counts[0].prompt_tokens - counts[1].prompt_tokens == len(pieces[0]) - len(pieces[1])
    answer = service.client.chat([{"role": "user", "content": said}], max_tokens=2)
    assert answer.usage.prompt_tokens == counts[0].prompt_tokens


def test_a_spelt_image_token_beside_a_picture_moves_no_placeholder(service: Service) -> None:
    picture = new_picture()
    messages = [{"role": "user", "content": ["[IMG][IMG_BREAK]", picture, "[IMG_END]?"]}]
    count = service.client.count_tokens(messages)
    answer = service.client.chat(messages, max_tokens=4)
    assert answer.usage.image_tokens == count.image_tokens == answer.images[0].tokens
