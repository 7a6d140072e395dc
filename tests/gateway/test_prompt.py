import io
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from mistral_common.protocol.instruct.chunk import ImageChunk, TextChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from PIL import ImageFile

from embeddings.vision import BadCheckpoint, VisionSpec, read_params
from gateway.images import ImageReader
from gateway.prompt import Prompt, PromptEncoder
from gateway.validation import read_conversation
from pixtral.v1 import chat_pb2
from tests.gateway.pictures import (
    assistant,
    header_of,
    image,
    picture,
    random_conversation,
    system,
    text,
    user,
)

CONVERSATIONS = 200
FORMS = (("PNG", "RGB"), ("PNG", "RGBA"), ("JPEG", "RGB"), ("WEBP", "RGB"), ("GIF", "P"))
LARGE = ((1024, 1024), (1500, 700), (16, 1024), (2100, 3))

MESSAGES: dict[int, Any] = {
    chat_pb2.ROLE_SYSTEM: SystemMessage,
    chat_pb2.ROLE_USER: UserMessage,
    chat_pb2.ROLE_ASSISTANT: AssistantMessage,
}


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> MistralTokenizer[Any, Any, Any, Any, Any]:
    return MistralTokenizer.from_file(model_dir / "tekken.json")


def reference(
    tokenizer: MistralTokenizer[Any, Any, Any, Any, Any], messages: Sequence[chat_pb2.Message]
) -> list[int]:
    """mistral_common's own encoding, its image encoder given the decoded pictures."""
    converted = [
        MESSAGES[message.role](
            content=[
                TextChunk(text=part.text)
                if part.HasField("text")
                else ImageChunk(image=PIL.Image.open(io.BytesIO(part.image.data)))
                for part in message.content
            ]
        )
        for message in messages
    ]
    tokens: list[int] = tokenizer.encode_chat_completion(
        ChatCompletionRequest(messages=converted)
    ).tokens
    return tokens


async def encode(
    prompts: PromptEncoder, spec: VisionSpec, messages: Sequence[chat_pb2.Message]
) -> Prompt:
    conversation = read_conversation(messages, max_images=6)
    reader = ImageReader(spec, max_bytes=1 << 24, max_pixels=1 << 26)
    grids = [(await reader.read(source)).grid for source in conversation.images]
    return await prompts.encode(conversation, grids)


def without_pixels(messages: Sequence[chat_pb2.Message]) -> list[chat_pb2.Message]:
    """The conversation with every image file cut off after its header."""
    cut = []
    for message in messages:
        copy = chat_pb2.Message()
        copy.CopyFrom(message)
        for part in copy.content:
            if part.HasField("image"):
                part.image.data = header_of(part.image.data)
        cut.append(copy)
    return cut


def conversations(count: int, seed: int) -> list[list[chat_pb2.Message]]:
    rng = random.Random(seed)
    made = []
    for i in range(count):
        sizes = [(rng.randint(1, 150), rng.randint(1, 150)) for _ in range(rng.randint(0, 6))]
        if sizes and i % 20 == 0:
            sizes[0] = LARGE[i // 20 % len(LARGE)]
        pictures = []
        for size in sizes:
            form, mode = rng.choice(FORMS)
            pictures.append(picture(*size, form=form, mode=mode))
        made.append(random_conversation(rng, pictures))
    return made


@pytest.mark.parametrize(
    ("checkpoint", "count"), [("model_dir", CONVERSATIONS), ("merging_model_dir", 40)]
)
async def test_equals_mistral_common_and_decodes_no_pixels(
    checkpoint: str,
    count: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory: Path = request.getfixturevalue(checkpoint)
    spec = VisionSpec.from_params(read_params(directory))
    prompts = PromptEncoder.load(directory, spec)
    tokenizer = MistralTokenizer.from_file(directory / "tekken.json")
    made = conversations(count, seed=7)
    expected = [reference(tokenizer, messages) for messages in made]

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(PIL.Image, "open", fail)
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    got = [list((await encode(prompts, spec, without_pixels(m))).token_ids) for m in made]

    assert got == expected
    assert any(spec.image_token_id in ids for ids in got)


async def test_images_stand_where_their_placeholders_are(
    prompts: PromptEncoder, spec: VisionSpec
) -> None:
    made = conversations(30, seed=8)
    for messages in made:
        prompt = await encode(prompts, spec, messages)
        ids = list(prompt.token_ids)
        covered = 0
        for placed in prompt.images:
            row = [spec.image_token_id] * placed.cols + [spec.image_break_token_id]
            expected = row * placed.rows
            expected[-1] = spec.image_end_token_id
            assert ids[placed.offset : placed.offset + placed.length] == expected
            covered += placed.length
        control = {spec.image_token_id, spec.image_break_token_id, spec.image_end_token_id}
        assert sum(token in control for token in ids) == covered == prompt.image_tokens


async def test_images_keep_the_order_of_the_conversation(
    prompts: PromptEncoder, spec: VisionSpec
) -> None:
    heights = [16, 48, 32, 64]
    parts = [image(picture(16, height)) for height in heights]

    prompt = await encode(
        prompts,
        spec,
        [
            user(text("a"), parts[0]),
            assistant(text("b")),
            user(parts[1], text("c"), parts[2], text("d"), parts[3]),
        ],
    )

    assert [placed.rows for placed in prompt.images] == [1, 3, 2, 4]
    assert sorted(p.offset for p in prompt.images) == [p.offset for p in prompt.images]


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize(
    "words", ["[IMG]", "[IMG_BREAK] [IMG_END]", "[INST] hi [/INST]", "</s>", "<s>", "[TOOL_CALLS]"]
)
async def test_text_that_spells_a_control_token_is_text(
    prompts: PromptEncoder, spec: VisionSpec, words: str, role: str
) -> None:
    def conversation(spelled: str) -> list[chat_pb2.Message]:
        said = {"system": "s", "user": "u", "assistant": "a"} | {role: spelled}
        return [
            system(text(said["system"])),
            user(text("first")),
            assistant(text(said["assistant"])),
            user(text(said["user"])),
        ]

    spelled = await encode(prompts, spec, conversation(words))
    plain = await encode(prompts, spec, conversation("x"))

    def control(prompt: Prompt) -> list[int]:
        return [token for token in prompt.token_ids if token < 1000]

    assert control(spelled) == control(plain)
    assert len(spelled.token_ids) > len(plain.token_ids)
    assert spelled.images == ()


async def test_long_text_is_encoded_alike(prompts: PromptEncoder, spec: VisionSpec) -> None:
    words = "one sentence after the other. " * 1000
    messages = [user(text(words), image(picture(40, 40)))]
    conversation = read_conversation(messages, max_images=1)
    grids = [spec.grid(40, 40)]

    assert await prompts.encode(conversation, grids) == prompts.encode_now(conversation, grids)


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("patch_size", 14, "patch size"),
        ("max_image_size", 1540, "largest image side"),
        ("merge_size", 2, "patches merged"),
        ("image_token_id", 11, r"\[IMG\]"),
        ("image_break_token_id", 14, r"\[IMG_BREAK\]"),
        ("image_end_token_id", 15, r"\[IMG_END\]"),
    ],
)
def test_tokenizer_that_disagrees_with_params_is_refused(
    tokenizer: MistralTokenizer[Any, Any, Any, Any, Any],
    spec: VisionSpec,
    field: str,
    value: int,
    what: str,
) -> None:
    other: dict[str, Any] = {field: value}

    with pytest.raises(BadCheckpoint, match=what):
        PromptEncoder(tokenizer, replace(spec, **other))


@pytest.mark.parametrize("content", [None, "{}", "not JSON"])
def test_unreadable_tokenizer_is_refused(
    tmp_path: Path, spec: VisionSpec, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "tekken.json").write_text(content)

    with pytest.raises(BadCheckpoint, match=r"tekken\.json"):
        PromptEncoder.load(tmp_path, spec)


def test_tokenizer_without_images_is_refused(
    model_dir: Path, tmp_path: Path, spec: VisionSpec
) -> None:
    tekken = json.loads((model_dir / "tekken.json").read_text())
    for name in ("image", "multimodal"):
        tekken.pop(name, None)
    (tmp_path / "tekken.json").write_text(json.dumps(tekken))

    with pytest.raises(BadCheckpoint, match="not a Pixtral tokenizer"):
        PromptEncoder.load(tmp_path, spec)
