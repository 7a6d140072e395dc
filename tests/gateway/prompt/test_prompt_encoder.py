import io
import json
import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from mistral_common.protocol.instruct.chunk import ImageChunk, TextChunk
from mistral_common.protocol.instruct.messages import (
    AssistantMessage,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.tool_calls import Function, FunctionCall, Tool, ToolCall
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from PIL import ImageFile

from pixtral.v1 import chat_pb2
from pixtral_core.errors import InvalidRequest
from pixtral_core.model.tokenizer_file import own_file
from pixtral_core.model.vision_spec import BadCheckpoint, VisionSpec, read_params
from pixtral_gateway.api.grpc.from_proto import read_conversation, read_tools
from pixtral_gateway.images.image_reader import ImageReader
from pixtral_gateway.prompt.mistral_messages import messages_of
from pixtral_gateway.prompt.prompt_encoder import Prompt, PromptEncoder
from tests.support.gateway_pictures import (
    assistant,
    calls,
    header_of,
    image,
    picture,
    random_conversation,
    random_tools,
    result,
    system,
    text,
    user,
    with_calls,
)

CONVERSATIONS = 200
FORMS = (("PNG", "RGB"), ("PNG", "RGBA"), ("JPEG", "RGB"), ("WEBP", "RGB"), ("GIF", "P"))
LARGE = ((1024, 1024), (1500, 700), (16, 1024), (2100, 3))

MESSAGES: dict[int, Any] = {
    chat_pb2.ROLE_SYSTEM: SystemMessage,
    chat_pb2.ROLE_USER: UserMessage,
    chat_pb2.ROLE_ASSISTANT: AssistantMessage,
    chat_pb2.ROLE_TOOL: ToolMessage,
}


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> MistralTokenizer[Any, Any, Any, Any, Any]:
    return MistralTokenizer.from_file(model_dir / "tekken.json")


def reference(
    tokenizer: MistralTokenizer[Any, Any, Any, Any, Any],
    messages: Sequence[chat_pb2.Message],
    tools: Sequence[chat_pb2.Tool] = (),
) -> list[int]:
    """mistral_common's own encoding, its image encoder given the decoded pictures."""
    converted = []
    for message in messages:
        fields: dict[str, Any] = {}
        if message.tool_calls:
            fields["tool_calls"] = [
                ToolCall(id=c.id, function=FunctionCall(name=c.name, arguments=c.arguments))
                for c in message.tool_calls
            ]
        if message.role == chat_pb2.ROLE_TOOL:
            fields["tool_call_id"] = message.tool_call_id
        content = [
            TextChunk(text=part.text)
            if part.HasField("text")
            else ImageChunk(image=PIL.Image.open(io.BytesIO(part.image.data)))
            for part in message.content
        ]
        converted.append(MESSAGES[message.role](content=content, **fields))
    offered = [
        Tool(
            function=Function(
                name=tool.name,
                description=tool.description,
                parameters=json.loads(tool.parameters or "{}"),
            )
        )
        for tool in tools
    ]
    tokens: list[int] = tokenizer.encode_chat_completion(
        ChatCompletionRequest(messages=converted, tools=offered or None)
    ).tokens
    return tokens


async def encode(
    prompts: PromptEncoder,
    spec: VisionSpec,
    messages: Sequence[chat_pb2.Message],
    tools: Sequence[chat_pb2.Tool] = (),
    choice: chat_pb2.ToolChoice | None = None,
) -> Prompt:
    offered = read_tools(chat_pb2.Chat(tools=tools, tool_choice=choice))
    conversation = read_conversation(messages, max_images=6, tools=offered)
    reader = ImageReader(spec, max_bytes=1 << 24, max_pixels=1 << 26)
    grids = [(await reader.read(source)).grid for source in conversation.images]
    await prompts.check(conversation)
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
    ("checkpoint", "count"),
    [("model_dir", CONVERSATIONS), ("merging_model_dir", 40), ("sentencepiece_model_dir", 40)],
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
    tokenizer = MistralTokenizer.from_file(own_file(directory) or directory)
    made = conversations(count, seed=7)
    expected = [reference(tokenizer, messages) for messages in made]

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(PIL.Image, "open", fail)
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    got = [list((await encode(prompts, spec, without_pixels(m))).token_ids) for m in made]

    assert got == expected
    assert any(spec.image_token_id in ids for ids in got)


@pytest.mark.parametrize(
    "checkpoint",
    [
        "model_dir",
        "merging_model_dir",
        "v11_model_dir",
        "v13_model_dir",
        "sentencepiece_model_dir",
    ],
)
async def test_tools_calls_and_results_are_encoded_as_mistral_common_does(
    checkpoint: str, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(checkpoint)
    spec = VisionSpec.from_params(read_params(directory))
    prompts = PromptEncoder.load(directory, spec)
    tokenizer = MistralTokenizer.from_file(own_file(directory) or directory)
    rng, may_say = random.Random(9), checkpoint != "model_dir"
    seen = set()
    for messages in conversations(80, seed=11):
        asked = with_calls(rng, messages, may_say=may_say)
        tools = random_tools(rng)
        got = list((await encode(prompts, spec, asked, tools)).token_ids)
        assert got == reference(tokenizer, asked, tools)
        seen.update(got)

    control = tokenizer.instruct_tokenizer.tokenizer.get_special_token
    names = ("[AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[IMG]")
    assert {control(name) for name in names} <= seen


async def test_ids_that_are_not_mistrals_are_stood_for(
    prompts: PromptEncoder, spec: VisionSpec
) -> None:
    def conversation(call_id: str) -> list[chat_pb2.Message]:
        return [user(text("u")), calls((call_id, "look", "{}")), result(call_id, text("a cat"))]

    by_openai = await encode(prompts, spec, conversation("call_0aK-2"))
    by_mistral = await encode(prompts, spec, conversation("a12345678"))
    again = await encode(prompts, spec, conversation("call_0aK-2"))
    another = await encode(prompts, spec, conversation("call_0aK-3"))

    assert by_openai == again
    assert len({tuple(each.token_ids) for each in (by_openai, by_mistral, another)}) == 3


async def test_a_call_that_must_be_made_is_begun(prompts: PromptEncoder, spec: VisionSpec) -> None:
    tools = [chat_pb2.Tool(name="look"), chat_pb2.Tool(name="go")]
    plain = await encode(prompts, spec, [user(text("u"))], tools)
    for choice in (
        chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_REQUIRED),
        chat_pb2.ToolChoice(name="look"),
    ):
        begun = await encode(prompts, spec, [user(text("u"))], tools, choice)
        assert list(begun.token_ids) == [*plain.token_ids, 9]

    none = chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_NONE)
    without = await encode(prompts, spec, [user(text("u"))], tools, none)
    assert without == await encode(prompts, spec, [user(text("u"))])


async def test_a_named_call_is_begun_with_its_name(v11_model_dir: Path) -> None:
    spec = VisionSpec.from_params(read_params(v11_model_dir))
    prompts = PromptEncoder.load(v11_model_dir, spec)
    tools = [chat_pb2.Tool(name="look"), chat_pb2.Tool(name="go")]
    plain = await encode(prompts, spec, [user(text("u"))], tools)
    named = chat_pb2.ToolChoice(name="look")
    begun = await encode(prompts, spec, [user(text("u"))], tools, named)
    spelled = await prompts.tokenize("look", bos=False)
    assert list(begun.token_ids) == [*plain.token_ids, 9, *spelled, 32]

    required = chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_REQUIRED)
    begun = await encode(prompts, spec, [user(text("u"))], tools, required)
    assert list(begun.token_ids) == [*plain.token_ids, 9]


DEEP = "[" * 20_000 + "]" * 20_000


@pytest.mark.parametrize(
    ("messages", "tools", "field"),
    [
        (
            [user(text("u")), calls(("a", "look", DEEP)), result("a")],
            [],
            "messages[1].tool_calls[0].arguments",
        ),
        (
            [user(text("u")), calls(("a", "look", "{}")), result("a", text("1" * 5000))],
            [],
            "messages[2].content",
        ),
        (
            [user(text("u")), calls(("a", "look", "{}")), result("a", text(DEEP))],
            [],
            "messages[2].content",
        ),
        (
            [user(text("u"))],
            [
                chat_pb2.Tool(name="good", parameters='{"type": "object"}'),
                chat_pb2.Tool(name="bad", parameters='{"properties": {"a": {"type": "no"}}}'),
            ],
            "tools[1].parameters",
        ),
    ],
)
async def test_what_mistral_common_does_not_take_is_refused(
    prompts: PromptEncoder,
    spec: VisionSpec,
    messages: list[chat_pb2.Message],
    tools: list[chat_pb2.Tool],
    field: str,
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await encode(prompts, spec, messages, tools)
    assert refused.value.violations[0][0] == field


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


@pytest.mark.parametrize(
    "parts", [[text("one sentence after the other. " * 1000)], [text("")] * 1000], ids=len
)
async def test_a_long_conversation_is_encoded_alike_and_off_the_loop(
    prompts: PromptEncoder,
    spec: VisionSpec,
    monkeypatch: pytest.MonkeyPatch,
    parts: list[chat_pb2.ContentPart],
) -> None:
    on_loop = threading.get_ident()
    threads = set()

    def seen(*given: Any, **named: Any) -> Any:
        threads.add(threading.get_ident())
        return messages_of(*given, **named)

    messages = [user(*parts, image(picture(40, 40)))]
    conversation = read_conversation(messages, max_images=1)
    grids = [spec.grid(40, 40)]

    expected = prompts.encode_now(conversation, grids)
    monkeypatch.setattr("pixtral_gateway.prompt.prompt_encoder.messages_of", seen)
    await prompts.check(conversation)
    assert await prompts.encode(conversation, grids) == expected
    assert threads
    assert on_loop not in threads


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


@pytest.mark.parametrize("content", ["{}", "not JSON"])
def test_unreadable_tokenizer_is_refused(tmp_path: Path, spec: VisionSpec, content: str) -> None:
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


async def test_white_space_that_the_tokenizer_does_not_take_is_the_requests_fault(
    prompts: PromptEncoder,
) -> None:
    spaces = " " * 1_000_000
    with pytest.raises(InvalidRequest, match="white space") as refused:
        await prompts.encode(read_conversation([user(text(spaces))], max_images=0), [])
    assert refused.value.violations[0][0] == "messages"
    with pytest.raises(InvalidRequest, match="white space"):
        await prompts.tokenize(spaces, bos=False)
