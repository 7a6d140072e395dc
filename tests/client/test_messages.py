"""Conversations in every form that people write them in."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pixtral.v1 import chat_pb2
from pixtral_client.messages import is_text, to_protos

DATA_URL = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()


def parts(content: Any) -> list[chat_pb2.ContentPart]:
    (message,) = to_protos([{"role": "user", "content": content}])
    return list(message.content)


def image_of(part: Any) -> chat_pb2.Image:
    (converted,) = parts([part])
    assert converted.WhichOneof("part") == "image"
    return converted.image


def test_turns_and_roles() -> None:
    converted = to_protos(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "In English."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": [{"type": "text", "text": "Hi."}], "tool_calls": None},
            {"role": "user", "content": "Bye", "name": "Ada"},
        ]
    )
    assert [message.role for message in converted] == [
        chat_pb2.ROLE_SYSTEM,
        chat_pb2.ROLE_SYSTEM,
        chat_pb2.ROLE_USER,
        chat_pb2.ROLE_ASSISTANT,
        chat_pb2.ROLE_USER,
    ]
    texts = [[part.text for part in message.content] for message in converted]
    assert texts == [["Be brief."], ["In English."], ["Hello"], ["Hi."], ["Bye"]]


def test_parts_keep_their_order() -> None:
    converted = parts(
        [
            "first",
            {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "high"}},
            {"type": "text", "text": "between"},
            b"GIF89a",
            {"type": "input_text", "text": "last"},
        ]
    )
    kinds = [part.text or part.image.url or part.image.data for part in converted]
    assert kinds == ["first", DATA_URL, "between", b"GIF89a", "last"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": DATA_URL},
        {"type": "image_url", "image_url": {"url": DATA_URL}},
        {"type": "input_image", "image_url": DATA_URL},
        {"type": "image", "image": DATA_URL},
        {"image_url": DATA_URL},
    ],
)
def test_data_urls_go_as_they_are(part: Any) -> None:
    assert image_of(part).url == DATA_URL


def test_detail_stands_beside_the_url_or_the_type() -> None:
    parts: list[Any] = [
        {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}},
        {"type": "input_image", "image_url": DATA_URL, "detail": "high"},
        {"type": "image", "image": b"file", "detail": "auto"},
        b"file",
    ]
    (message,) = to_protos([{"role": "user", "content": parts}])
    assert [part.image.detail for part in message.content] == [
        chat_pb2.IMAGE_DETAIL_LOW,
        chat_pb2.IMAGE_DETAIL_HIGH,
        chat_pb2.IMAGE_DETAIL_UNSPECIFIED,
        chat_pb2.IMAGE_DETAIL_UNSPECIFIED,
    ]
    with pytest.raises(ValueError, match=r"messages\[0\].content\[0\].detail must be auto, low"):
        to_protos([{"role": "user", "content": [parts[2] | {"detail": "fine"}]}])


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"type": "image", "image": x}])
def test_files_and_bytes_go_unchanged(tmp_path: Path, wrap: Any) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(b"\xff\xd8\xff of a cat")
    assert image_of(wrap(path)).data == path.read_bytes()
    assert image_of(wrap(b"of a dog")).data == b"of a dog"
    assert image_of(wrap(bytearray(b"of a dog"))).data == b"of a dog"
    assert image_of(wrap(memoryview(b"of a dog"))).data == b"of a dog"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1"])
@pytest.mark.parametrize("key", ["image", "image_pil"])
def test_pil_images_keep_their_pixels(mode: str, key: str) -> None:
    picture = Image.linear_gradient("L").resize((24, 16)).convert(mode)
    sent = image_of({"type": key, key: picture}).data
    with Image.open(io.BytesIO(sent)) as received:
        assert received.format == "PNG"
        assert received.convert("RGB").tobytes() == picture.convert("RGB").tobytes()
    assert image_of(picture).data == sent, "the same picture is the same file, and so cached"


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (None, TypeError, r"messages\[0\].content must be a string or a list of parts, not None"),
        (b"GIF", TypeError, r"messages\[0\].content must be a string or a list of parts"),
        (["a", 3], TypeError, r"messages\[0\].content\[1\] must be a URL.*not int"),
        ([{"type": "video_url"}], ValueError, r"messages\[0\].content\[0\].type.*'video_url'"),
        ([{}], ValueError, r"messages\[0\].content\[0\].type"),
        ([{"type": "text"}], TypeError, r"messages\[0\].content\[0\].text must be a string"),
        (
            [{"type": "image_url", "image_url": {"uri": "x"}}],
            TypeError,
            r"messages\[0\].content\[0\].image_url.url must be a URL.*not None",
        ),
        (
            [{"type": "image_url", "image_url": "file:///etc/passwd"}],
            ValueError,
            r"messages\[0\].content\[0\].image_url must be a data:, http: or https: URL",
        ),
        (
            [{"type": "image", "image": "/etc/passwd"}],
            ValueError,
            r"messages\[0\].content\[0\].image .*give a file as a pathlib.Path",
        ),
        (
            [{"type": "image", "image": Path("/no/such.jpg")}],
            ValueError,
            r"messages\[0\].content\[0\].image: cannot read /no/such.jpg: No such file",
        ),
    ],
)
def test_wrong_content_is_named(content: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        parts(content)


@pytest.mark.parametrize(
    ("messages", "error", "said"),
    [
        ("Hello", TypeError, "messages must be a list of messages, not str"),
        ({"role": "user", "content": "Hello"}, TypeError, "must be a list of messages, not dict"),
        ([[{"role": "user", "content": "a"}]], TypeError, r"messages\[0\] is a list"),
        (["Hello"], TypeError, r"messages\[0\] must be a dict"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], ValueError, r"messages\[1\].role"),
        ([{"role": "function", "content": "a"}], ValueError, r"messages\[0\].role must be one of"),
        (
            [{"role": "assistant", "content": "a", "tool_calls": [{}]}],
            TypeError,
            r"messages\[0\].tool_calls\[0\].id must be a string",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": 1}}]}],
            TypeError,
            r"messages\[0\].tool_calls\[0\].name must be a string",
        ),
        (
            [{"role": "assistant", "tool_calls": ["a"]}],
            TypeError,
            r"messages\[0\].tool_calls\[0\] must be a dict",
        ),
        (
            [{"role": "assistant", "content": "a", "function_call": {"name": "a"}}],
            ValueError,
            r"messages\[0\].function_call",
        ),
    ],
)
def test_wrong_messages_are_named(messages: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        to_protos(messages)


@pytest.mark.parametrize(
    ("content", "is_it"),
    [
        ("Hello", True),
        (None, True),
        (["a", {"type": "text", "text": "b"}], True),
        ([Path("cat.png")], False),
        ([b"bytes"], False),
        ([{"text": "without a type"}], False),
        ([{"type": "image_url", "image_url": DATA_URL}], False),
        ([{"type": "text", "text": "a"}, {"type": "image", "image": Path("cat.png")}], False),
        (Path("cat.png"), False),
        (5, False),
    ],
)
def test_what_is_text_alone_needs_no_thread(content: Any, is_it: bool) -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "user", "content": content}]
    assert is_text(messages) is is_it


@pytest.mark.parametrize("messages", [["Hello"], "Hello", {"role": "user"}, 5, None])
def test_no_conversation_is_text(messages: Any) -> None:
    assert not is_text(messages)


def test_a_text_that_names_an_image_file_is_no_question_about_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cat.PNG").write_bytes(b"cat")
    monkeypatch.chdir(tmp_path)
    for name in ("cat.PNG", f"{tmp_path}/cat.PNG"):
        with pytest.raises(ValueError, match=r"messages\[0\].content\[0\] .* a pathlib.Path"):
            parts([name, "What is this?"])
    as_text = {"type": "text", "text": "cat.PNG"}
    assert [part.text for part in parts([as_text, "dog.png", "the cat.PNG here"])] == [
        *("cat.PNG", "dog.png", "the cat.PNG here")
    ]
    assert parts("cat.PNG")[0].text == "cat.PNG"


def test_texts_that_end_as_a_file_are_looked_up_off_the_event_loop() -> None:
    assert is_text([{"role": "user", "content": ["What is this?"]}])
    assert not is_text([{"role": "user", "content": ["cat.png"]}])
