"""A question shows the images that it names, and is an error where one is not there."""

import base64
from pathlib import Path

import pytest

from pixtral_cli import question
from pixtral_cli.question import NoSuchImage, ShownImage, load_image, parse, whole_questions


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("cat.jpg", "my dog.jpg", "it's.png", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures.png").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def seen(line: str) -> list[str | bytes]:
    return [part.data if isinstance(part, ShownImage) else part for part in parse(line)]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("plain", ["plain"]),
        ("@cat.jpg", [b"cat.jpg"]),
        ("@cat.jpg what?", [b"cat.jpg", "what?"]),
        ("cat.jpg what?", [b"cat.jpg", "what?"]),
        ("What is in ./cat.jpg?", ["What is in", b"cat.jpg", "?"]),
        ("and (in @cat.jpg)?", ["and (in", b"cat.jpg", ")?"]),
        ("and (in cat.jpg).", ["and (in", b"cat.jpg", ")."]),
        ('@"my dog.jpg" here', [b"my dog.jpg", "here"]),
        ('"my dog.jpg" here', [b"my dog.jpg", "here"]),
        ("'my dog.jpg' here", [b"my dog.jpg", "here"]),
        (r"my\ dog.jpg here", [b"my dog.jpg", "here"]),
        (r"it\'s.png here", [b"it's.png", "here"]),
        ("cat.jpg and 'my dog.jpg'", [b"cat.jpg", "and", b"my dog.jpg"]),
        ("@notes.txt what?", [b"notes.txt", "what?"]),
        ("notes.txt what?", ["notes.txt what?"]),
        ("mail me@cat.jpg", ["mail me@cat.jpg"]),
        ("ask @ada", ["ask @ada"]),
        ("is `nowhere.png` or `@cat.jpg` better?", ["is `nowhere.png` or `@cat.jpg` better?"]),
        ("What is a .png file?", ["What is a .png file?"]),
        ('She said "hello" to it', ['She said "hello" to it']),
        ("What's up? It isn't 'cut'.", ["What's up? It isn't 'cut'."]),
        ("/pictures or not", ["/pictures or not"]),
        ("two\nlines cat.jpg", ["two\nlines", b"cat.jpg"]),
    ],
)
def test_images_in_a_line(line: str, parts: list[str | bytes]) -> None:
    assert seen(line) == parts


def test_a_dragged_file_is_shown(here: Path) -> None:
    assert seen(f"file://{here}/my%20dog.jpg what?") == [b"my dog.jpg", "what?"]
    assert seen(f"{here}/my\\ dog.jpg") == [b"my dog.jpg"]
    assert seen(f"'{here}/my dog.jpg' ") == [b"my dog.jpg"]


@pytest.mark.parametrize(
    "line",
    [
        *("@nowhere.png what?", "nowhere.png what?", "what is in nowhere.JPEG?"),
        *('"no where.png" what?', "'no where.png'", r"no\ where.png", "file:///no/where.png"),
        *("@pictures what?", "@./nothing what?", "pictures.png what?", "/no/where.webp"),
    ],
)
def test_an_image_that_is_not_there_is_an_error(line: str) -> None:
    with pytest.raises(NoSuchImage):
        parse(line)


def test_the_error_says_how_to_speak_of_a_name() -> None:
    with pytest.raises(NoSuchImage, match=r"there is no image nowhere\.png.* write `nowhere"):
        parse("look at nowhere.png, please")
    with pytest.raises(NoSuchImage, match="pictures is a directory"):
        parse("@pictures what?")


def test_urls_are_fetched_with_or_without_the_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(url: str) -> bytes:
        fetched.append(url)
        return base64.b64encode(url.encode())

    monkeypatch.setattr(question, "fetch", fetch)
    parse("https://example.org/a.png?size=2 and @http://example.org/b, see https://example.org/c")
    assert fetched == ["https://example.org/a.png?size=2", "http://example.org/b"]


def test_a_url_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        NoSuchImage, match=r"http://127.0.0.1:1/cat.png cannot be read: Connection refused"
    ):
        load_image("http://127.0.0.1:1/cat.png")


def test_lines_are_joined_to_questions() -> None:
    lines = iter(
        ["one", "two\\", "lines", '"""three', "", "lines", '"""', '"""one line"""', "", "end\\"]
    )
    asked = []

    def read(goes_on: bool) -> str | None:
        asked.append(goes_on)
        return next(lines, None)

    assert list(whole_questions(read)) == [
        *("one", "two\nlines", "three\n\nlines", "one line", "", "end"),
    ]
    assert asked == [False, False, True, False, True, True, True, False, False, False, True, False]
