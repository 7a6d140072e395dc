"""A terminal with `up` and `chat`, as docs/pictures/session.svg shows it."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tools.recorded_session import PICTURE, QUESTIONS, ask, shown, stack, svg

# The names in the summary of `up`, in their order.
NAMES = (
    *("ready", "OpenAI's API", "gRPC", "page", "metrics", "metrics", "metrics"),
    *("model", "at once", "keys, values", "Redis"),
)
COLOURS = re.compile(r"\x1b\[[\d;]*m")


def texts(written: str) -> list[str]:
    return [COLOURS.sub("", line).strip() for line in shown(written)]


def names(lines: list[str]) -> list[str]:
    """Those of the summary, in a terminal's lines."""
    words = "|".join(map(re.escape, dict.fromkeys(NAMES)))
    return [found[1] for line in lines if (found := re.match(rf"({words})  +\S", line))]


def lines_of(picture: str) -> list[str]:
    """The lines of a picture: its texts from top to bottom, each from left to right."""
    rows: dict[float, list[tuple[float, str]]] = {}
    drawing = ElementTree.fromstring(picture)  # noqa: S314 - it is this project's own
    for element in drawing.iter("{http://www.w3.org/2000/svg}text"):
        if "clip-path" in element.attrib:
            at = float(element.attrib["y"]), float(element.attrib["x"])
            text = (element.text or "").replace("\u00a0", " ")
            rows.setdefault(at[0], []).append((at[1], text))
    return ["".join(text for _, text in sorted(rows[y])).strip() for y in sorted(rows)]


def test_up_serves_chat_asks_and_ctrl_c_stops_it_all() -> None:
    any_port = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
    with stack(*any_port) as up:
        ready = texts(up.written)
        (target,) = re.findall(r"pixtral-serve chat --target (\S+) ", up.written)
        answers = [ask(question, "--target", target) for question in QUESTIONS]
        up.press_ctrl_c()
        assert up.end() == 0
    # Each tier counted its weights, and the last picture of the display says that all are ready.
    assert up.written.count("warming up") >= 2
    states = [line.split()[1:3] for line in ready if line.startswith("✓")]
    assert sorted(states) == [
        [name, "ready"] for name in ("decoder", "encoder", "gateway", "redis")
    ]
    assert names(ready) == [*NAMES]
    first, second = (texts(answer.written) for answer in answers)
    assert "It says BRAIN." in first
    assert "It is a diamond." in second
    assert "images cached: 0 of 1" in " ".join(first)
    assert "images cached: 1 of 1" in " ".join(second)
    assert texts(up.written)[-2:] == ["^Cstopping", ""]
    # A picture of it has the same lines.
    whole = lines_of(svg([up, *answers]))
    assert names(whole) == [*NAMES]
    assert "It says BRAIN." in whole


def test_a_line_that_is_drawn_anew_is_shown_once() -> None:
    cleared = "\r\x1b[2K"
    written = f"$ up\r\na 1\r\nb 1{cleared}\x1b[1A\x1b[2Ka 2\r\nb \x1b[1m2\x1b[0m\r\nend"
    assert shown(written) == ["$ up", "a 2", "b \x1b[1m2\x1b[0m", "end"]


@pytest.fixture(scope="module")
def published() -> str:
    return Path(PICTURE).read_text("utf-8")


def test_the_picture_in_the_docs_shows_todays_summary(published: str) -> None:
    """Once this fails, `python -m tools.recorded_session` makes the picture again."""
    lines = lines_of(published)
    assert names(lines) == [*NAMES]
    assert "$ pixtral-serve up models/pixtral-mini" in lines
    assert {"It says BRAIN.", "It is a diamond."} <= {*lines}


def test_the_picture_in_the_docs_loads_nothing(published: str) -> None:
    assert "url(" not in published.replace("url(#", "")
