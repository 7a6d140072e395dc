"""Image files for tests, and conversations with them."""

import io
import json
import random
import struct
import zlib
from collections.abc import AsyncIterator, Iterable

import numpy as np
from PIL import Image

from pixtral.v1 import chat_pb2


def picture(
    width: int, height: int, *, form: str = "PNG", mode: str = "RGB", seed: int = 0
) -> bytes:
    """An image file of the given size; equal arguments give equal bytes."""
    rng = np.random.default_rng([seed, width, height])
    small = rng.integers(0, 256, (min(height, 32), min(width, 32), 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def header_of(data: bytes) -> bytes:
    """The file up to its first byte of image data."""
    if data.startswith(b"\x89PNG"):
        return data[: data.index(b"IDAT")]
    if data.startswith(b"\xff\xd8"):
        return data[: data.index(b"\xff\xda")]
    if data.startswith(b"RIFF"):
        return data[:30]
    if data.startswith(b"BM"):
        return data[:26]
    if data[:1] == b"P":
        return data[: data.index(b"\n", 3) + 1]
    for beginning, end in ((b"ftyp", b"mdat"), (b"jP  ", b"jp2c")):
        if data[4:8] == beginning:
            return data[: data.index(end)]
    if data.startswith(b"II"):
        # Pillow writes the directory first.
        return data[: 10 + 12 * int.from_bytes(data[8:10], "little")]
    descriptor = data.index(b",", 13 + (3 << (data[10] & 7) + 1))
    return data[: descriptor + 10]


def text(words: str) -> chat_pb2.ContentPart:
    return chat_pb2.ContentPart(text=words)


def image(data: bytes) -> chat_pb2.ContentPart:
    return chat_pb2.ContentPart(image=chat_pb2.Image(data=data))


def image_url(url: str) -> chat_pb2.ContentPart:
    return chat_pb2.ContentPart(image=chat_pb2.Image(url=url))


def image_named(sha256: bytes) -> chat_pb2.ContentPart:
    return chat_pb2.ContentPart(image=chat_pb2.Image(sha256=sha256.hex()))


def system(*parts: chat_pb2.ContentPart) -> chat_pb2.Message:
    return chat_pb2.Message(role=chat_pb2.ROLE_SYSTEM, content=parts)


def user(*parts: chat_pb2.ContentPart) -> chat_pb2.Message:
    return chat_pb2.Message(role=chat_pb2.ROLE_USER, content=parts)


def assistant(*parts: chat_pb2.ContentPart) -> chat_pb2.Message:
    return chat_pb2.Message(role=chat_pb2.ROLE_ASSISTANT, content=parts)


def calls(
    *made: tuple[str, str, str], parts: Iterable[chat_pb2.ContentPart] = ()
) -> chat_pb2.Message:
    """An assistant's message with tool calls: id, name and arguments of each."""
    return chat_pb2.Message(
        role=chat_pb2.ROLE_ASSISTANT,
        content=parts,
        tool_calls=[
            chat_pb2.ToolCall(id=call_id, name=name, arguments=arguments)
            for call_id, name, arguments in made
        ],
    )


def result(call_id: str, *parts: chat_pb2.ContentPart) -> chat_pb2.Message:
    return chat_pb2.Message(role=chat_pb2.ROLE_TOOL, content=parts, tool_call_id=call_id)


WORDS = [
    *("What", "is", "in", "this", "picture?", "cat", "and", "dog", "...", "", "12345", "naïve"),
    *("[IMG]", "[IMG_END]", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "</s>", "<s>", "<pad>"),
    *("[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/TOOL_RESULTS]", "[ARGS]"),
    *("日本語", "🙂", "def f(x):\n\treturn x", "a\n\nb"),
]


def random_words(rng: random.Random) -> str:
    words = " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))
    return (words + rng.choice(["", "", " ", "\n"])) or "x"


def random_conversation(rng: random.Random, pictures: Iterable[bytes]) -> list[chat_pb2.Message]:
    """1 to 5 user turns, sometimes a system message, and the images anywhere in the text."""
    turns = rng.randint(1, 5)
    content: list[list[chat_pb2.ContentPart]] = [
        [text(random_words(rng)) for _ in range(rng.randint(0, 3))] for _ in range(turns)
    ]
    for data in pictures:
        parts = rng.choice(content)
        parts.insert(rng.randint(0, len(parts)), image(data))
    messages = [system(text(random_words(rng)))] if rng.random() < 0.5 else []
    for i, parts in enumerate(content):
        messages.append(user(*(parts or [text(random_words(rng))])))
        if i < turns - 1:
            messages.append(assistant(*(text(random_words(rng)) for _ in range(rng.randint(1, 2)))))
    return messages


ARGUMENTS = [
    "{}",
    '{"at": "cat"}',
    '{ "n":[1,2.50,"é"],"m": null }',
    "",
    "no JSON",
    '"[TOOL_CALLS]"',
]
RESULTS = ["", "21.5", '{"found":  true}', "two\nlines", "[1, 2", '"[/TOOL_RESULTS]"', "naïve 🙂"]


def random_tools(rng: random.Random) -> list[chat_pb2.Tool]:
    schemas = ["", json.dumps({"type": "object", "properties": {random_words(rng): {}}})]
    return [
        chat_pb2.Tool(
            name=f"tool-{i}_{rng.randint(0, 9)}",
            description=rng.choice(["", random_words(rng)]),
            parameters=rng.choice(schemas),
        )
        for i in range(rng.randint(0, 3))
    ]


def with_calls(
    rng: random.Random, messages: Iterable[chat_pb2.Message], *, may_say: bool
) -> list[chat_pb2.Message]:
    """The conversation with some questions followed by tool calls and their results.

    With `may_say`, some calls have text beside them.
    """
    made: list[chat_pb2.Message] = []
    for message in messages:
        made.append(message)
        while message.role == chat_pb2.ROLE_USER and rng.random() < 0.5:
            ids = ["".join(rng.choices("abcXYZ019", k=9)) for _ in range(rng.randint(1, 3))]
            said = [text(random_words(rng))] if may_say and rng.random() < 0.5 else []
            made.append(calls(*((each, "look", rng.choice(ARGUMENTS)) for each in ids), parts=said))
            for each in rng.sample(ids, len(ids)):
                words = rng.sample(RESULTS, rng.randint(0, 2))
                made.append(result(each, *(text(word) for word in words)))
    return made


def png_of(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]
