"""The progress that `up` shows while a stack starts, on a terminal and elsewhere."""

import io

import pytest
from rich.console import Console

from pixtral_cli import terminal
from pixtral_cli.stack.process_stack import Progress
from pixtral_cli.terminal import start_progress


def shown(monkeypatch: pytest.MonkeyPatch, *steps: Progress, is_terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=80, soft_wrap=True)
    monkeypatch.setattr(terminal, "console", console)
    with start_progress() as progress:
        for step in steps:
            progress(step)
    return file.getvalue()


def test_elsewhere_the_per_cent_are_a_line_each_ten_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = shown(
        monkeypatch,
        Progress("decoder", "loading", 1.0),
        Progress("decoder", "loading", 9.0, 10),
        Progress("encoder", "loading", 9.5, 90),
        Progress("decoder", "loading", 12.0, 20),
        Progress("decoder", "loading", 13.0, 21),
        Progress("encoder", "ready", 14.0),
        Progress("decoder", "loading", 22.0, 30),
        Progress("decoder", "ready", 30.0),
        is_terminal=False,
    )
    assert text.splitlines() == [
        "decoder: loading (1.0 s)",
        "weights: decoder 20%, encoder 90% (12.0 s)",
        "encoder: ready (14.0 s)",
        "weights: decoder 30% (22.0 s)",
        "decoder: ready (30.0 s)",
    ]


@pytest.mark.parametrize(
    ("last", "end"),
    [
        (Progress("decoder", "loading", 9.0), "loading"),
        (Progress("decoder", "loading", 9.0, 42), "loading 42%"),
        (Progress("decoder", "loading", 9.0, 100), "warming up"),
        (Progress("decoder", "ready", 9.0), "ready"),
    ],
)
def test_on_a_terminal_a_process_is_one_line(
    monkeypatch: pytest.MonkeyPatch, last: Progress, end: str
) -> None:
    text = shown(monkeypatch, Progress("decoder", "starting", 0.0), last, is_terminal=True)
    line = [line for line in text.splitlines() if "decoder" in line][-1]
    assert f" {end} " in line
