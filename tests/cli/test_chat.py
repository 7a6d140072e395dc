"""Conversations through pipes and a pseudo-terminal: commands, exit codes, what is shown."""

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pixtral_cli import main, terminal
from pixtral_cli.line_editor import history_file
from pixtral_cli.markdown_stream import MarkdownStream
from tests.support.fake_gateway import BAD_IMAGE, FakeGateway, bad, refusal, serving

PNG = b"\x89PNG of a cat"
DEADLINE = 120.0


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(terminal.console, "stderr", False)
    (tmp_path / "cat.png").write_bytes(PNG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()
    with serving(fake) as address:
        fake.address = address
        yield fake


def chat(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, *lines: str, flags: tuple[str, ...] = ()
) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return main.main(["chat", "--target", gateway.address, *flags])


def turns(request: Any) -> list[tuple[int, list[Any]]]:
    return [
        (message.role, [part.text or part.image.data or part.image.url for part in message.content])
        for message in request.chat.messages
    ]


def test_a_wrong_path_is_an_error_before_anything_is_sent(
    gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    for question in ("look @nowhere.png please", "docs/chart.png How many bars?"):
        assert main.main(["chat", "--target", gateway.address, question]) == 2
    assert "there is no image docs/chart.png" in capsys.readouterr().err
    assert main.main(["chat", "--target", gateway.address, "-i", "no.png", "what?"]) == 2
    assert not gateway.requests


def test_a_cut_answer_says_so_and_why(
    gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.is_cut = True
    asked = ["chat", "--target", gateway.address, "Hello"]
    assert main.main([*asked, "--max-tokens", "5"]) == 3
    assert "cut at 5 tokens: --max-tokens or /set max_tokens allows more" in capsys.readouterr().err
    assert main.main(asked) == 3
    assert "cut at 5 tokens: the model's context is full" in capsys.readouterr().err


def test_exit_codes_tell_failures_apart(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(gateway, monkeypatch, "Hello") == 0
    assert chat(gateway, monkeypatch, "nowhere.png", "Hello") == 2
    gateway.is_cut = True
    assert chat(gateway, monkeypatch, "Hello") == 3
    gateway.failure = BAD_IMAGE
    assert chat(gateway, monkeypatch, "nowhere.png", "Hello") == 1
    with pytest.raises(SystemExit) as left:
        main.main(["chat", "--help"])
    assert left.value.code == 0
    assert "3: --max-tokens or the model's context cut the answer" in re.sub(
        r"\s+", " ", capsys.readouterr().out
    )


def test_an_error_names_the_file_that_it_is_about(
    gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.failure = bad("chat.messages[0].content[0].image.data")
    assert main.main(["chat", "--target", gateway.address, "cat.png what?"]) == 1
    assert "messages[0].content[0] is cat.png" in capsys.readouterr().err


def test_a_refused_question_is_asked_again(gateway: FakeGateway) -> None:
    gateway.failures = [refusal(0.01)]
    assert main.main(["chat", "--target", gateway.address, "Hello"]) == 0
    assert len(gateway.requests) == 2


def test_commands_shape_what_is_asked(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (
        *("/system Be brief.", "/set temperature 0", "/set stop END", "/set", "/model"),
        *("/model pixtral", "Hello", "/set temperature", "/system", "/reset", "Bye"),
    )
    assert chat(gateway, monkeypatch, *lines) == 0
    first, second = [request for request in gateway.requests if hasattr(request, "chat")]
    assert first.chat.model == "pixtral"
    assert turns(first)[0][1] == ["Be brief."]
    assert first.chat.sampling.temperature == 0.0
    assert first.chat.sampling.HasField("temperature")
    assert list(first.chat.sampling.stop) == ["END"]
    assert not second.chat.sampling.HasField("temperature")
    assert [parts for _, parts in turns(second)] == [["Bye"]]
    assert '  stop "END"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/foo", "there is no command /foo: /help lists them"),
        ("/save", "/save needs an argument"),
        ("/set temprature 1", "no option temprature"),
        ("/set temperature hot", "temperature: "),
        ("/model other", "no model other; there are pixtral"),
        ("/load cat.png", "has no conversation"),
    ],
)
def test_wrong_commands_say_what_is_wrong(
    gateway: FakeGateway,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    said: str,
) -> None:
    assert chat(gateway, monkeypatch, line) == 2
    assert said in capsys.readouterr().err


def test_a_path_at_the_beginning_is_no_command(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    assert chat(gateway, monkeypatch, f"{here}/cat.png what?") == 0
    assert turns(gateway.requests[0])[0][1] == [PNG, "what?"]


def test_a_saved_conversation_goes_on(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    chat(gateway, monkeypatch, "/system Be brief.", "cat.png what?", "/save it.json")
    saved = json.loads((here / "it.json").read_text())
    assert saved["messages"][1]["content"][0]["image_url"]["url"].startswith("data:image/png;")
    assert chat(gateway, monkeypatch, "/load it.json", "And now?") == 0
    system, question, answer, again = turns(gateway.requests[-1])
    assert (system[1], answer[1], again[1]) == (["Be brief."], ["A cat on a mat."], ["And now?"])
    assert question[1][1] == "what?"


def test_several_lines_are_one_question(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat(gateway, monkeypatch, "one\\", "two", '"""three', "four", '"""')
    assert [turns(request)[-1][1] for request in gateway.requests] == [
        ["one\ntwo"],
        ["three\nfour"],
    ]


def test_markdown_is_rendered_as_it_comes() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=60, color_system=None)
    table, code = "| a | b |\n|---|---|\n| 1 | 2 |", "```python\nx = 1\n\ny = 2\n```"
    answer = f"# Title\n\n{table}\n\n{code}\n\n**bold** end"
    with MarkdownStream(console) as shown:
        for at in range(0, len(answer), 5):
            shown.write(answer[at : at + 5])
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "**" not in text.rpartition("y = 2")[2]
    assert "Title" in text
    assert "|---|" not in text.rpartition("x = 1")[0].splitlines()[-1], "the table is drawn"
    assert text.index("x = 1") < text.rindex("y = 2") < text.rindex("bold end")


class Terminal:
    """`pixtral-serve chat` on a pseudo-terminal."""

    def __init__(self, gateway: FakeGateway, directory: Path) -> None:
        self._master, slave = pty.openpty()
        command = [sys.executable, "-m", "pixtral_cli.main", "chat", "--target", gateway.address]
        environment = os.environ | {
            **{"TERM": "xterm", "XDG_STATE_HOME": str(directory / "state")},
            # The answer to a question about the cursor never comes here.
            **{"PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "100", "LINES": "40"},
        }
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, cwd=directory
        )
        os.close(slave)
        self._text = ""

    def expect(self, text: str) -> None:
        """Waits for the text, and drops the output until then."""
        deadline = time.monotonic() + DEADLINE
        while text not in self._text:
            assert time.monotonic() < deadline, f"no {text!r} in {self._text!r}"
            if select.select([self._master], [], [], 1.0)[0]:
                try:
                    read = os.read(self._master, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"it ended without {text!r}: {self._text!r}") from None
                self._text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", read)
        self._text = self._text.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> int:
        self.type("\x04")
        try:
            return self.process.wait(DEADLINE)
        finally:
            self.process.kill()
            os.close(self._master)


def test_a_terminal_completes_paths_and_keeps_history(
    gateway: FakeGateway, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Terminal(gateway, here)
    first.expect(">")
    first.type("what is ca\t")
    first.expect("cat.png")
    first.type("\r")
    first.expect("A cat on a mat.")
    first.expect(">")
    assert first.close() == 0
    assert turns(gateway.requests[0])[0][1] == ["what is", PNG]

    monkeypatch.setenv("XDG_STATE_HOME", str(here / "state"))
    assert "what is cat.png" in history_file().read_text()
    assert history_file().stat().st_mode & 0o077 == 0

    second = Terminal(gateway, here)
    second.expect(">")
    second.type("\x1b[A")
    second.expect("what is cat.png")
    second.type("\r")
    second.expect("A cat on a mat.")
    second.expect(">")
    assert second.close() == 0
    assert turns(gateway.requests[1])[0][1] == ["what is", PNG]
