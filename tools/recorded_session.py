"""Runs `up` and `chat` in a terminal, and draws what it shows: docs/pictures/session.svg.

python -m tools.recorded_session [SVG]

The commands are the real ones, with models/pixtral-mini at the default addresses: nothing else may
listen there. It needs no GPU, and takes a minute.
"""

import argparse
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "pictures" / "session.svg"
PROGRAM = Path(sys.executable).with_name("pixtral-serve")
MODEL = "models/pixtral-mini"
IMAGE = "docs/demo/street.png"
QUESTIONS = ("What word is printed?", "What shape is black?")
ROWS, COLUMNS = 50, 120
PATIENCE_SECONDS = 240.0

# The commands write these besides text: sequences that move, clear or colour.
_CONTROL = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|\r|\n")


class TerminalError(RuntimeError):
    """The text did not come. Says what came."""


class Terminal:
    """A command in a pseudo-terminal of its own, from the shell's prompt on."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._master, slave = os.openpty()
        termios.tcsetwinsize(slave, (ROWS, COLUMNS))
        self._process = subprocess.Popen(
            [str(PROGRAM), *arguments],
            cwd=ROOT,
            env=environment,
            preexec_fn=lambda: _enter(slave),
        )
        os.close(slave)
        self.written = f"$ {shlex.join(['pixtral-serve', *arguments])}\r\n"

    def until(self, text: str) -> None:
        """Returns once it has written this. Raises TerminalError."""
        while text not in self.written:
            if not self._has_written_more():
                raise TerminalError(f"it ended without {text!r}: {self.written}")

    def end(self) -> int:
        """The exit code, once it has ended. Raises TerminalError."""
        while self._has_written_more():
            pass
        return self._process.wait(PATIENCE_SECONDS)

    def press_ctrl_c(self) -> None:
        os.write(self._master, b"\x03")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(PATIENCE_SECONDS)
        os.close(self._master)

    def _has_written_more(self) -> bool:
        """Waits for more. Returns False at the end."""
        if not select.select([self._master], [], [], PATIENCE_SECONDS)[0]:
            raise TerminalError(f"silent for {PATIENCE_SECONDS:g} s: {self.written}")
        try:
            self.written += os.read(self._master, 65536).decode("utf-8", "replace")
        except OSError:
            # Linux ends a terminal that nobody has open any more by an error.
            return False
        return True


def _enter(terminal: int) -> None:
    """In the new process: its own terminal, where Ctrl-C does what it does for a person."""
    os.login_tty(terminal)
    # A shell's background jobs ignore Ctrl-C, and their children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def stack(*flags: str) -> Iterator[Terminal]:
    """A terminal in which `up` serves the small model. Nothing of it is left afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="pixtral-home-") as home,
        Terminal(["up", MODEL, *flags], environment(home)) as terminal,
    ):
        terminal.until("Ctrl-C stops it all.")
        yield terminal


def ask(question: str, *flags: str) -> Terminal:
    """A terminal in which `chat` has answered, and its exit code is 0."""
    with tempfile.TemporaryDirectory(prefix="pixtral-home-") as home:
        arguments = ["chat", *flags, "--image", IMAGE, question]
        with Terminal(arguments, environment(home)) as terminal:
            if code := terminal.end():
                raise TerminalError(f"exit code {code}: {terminal.written}")
    return terminal


def environment(home: str) -> dict[str, str]:
    """A person's environment, without settings of this project and without a history."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIXTRAL_", "OTEL_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"))
    }
    return {**inherited, "TERM": "xterm-256color", "COLORTERM": "truecolor", "HOME": home}


def shown(written: str) -> list[str]:
    """The lines that a terminal shows after this, each with its colours.

    rich draws a live display anew by going up and clearing whole lines. No other movement is in the
    commands' output, so that a line needs no columns.
    """
    lines, row, at = [""], 0, 0
    for found in _CONTROL.finditer(written):
        lines[row] += written[at : found.start()]
        at = found.end()
        number, kind = found[1], found[2] or found[0]
        if kind == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif kind == "A":
            row = max(0, row - int(number or 1))
        elif kind == "K":
            lines[row] = ""
        elif kind == "m":
            lines[row] += found[0]
    lines[row] += written[at:]
    return lines


def svg(terminals: Sequence[Terminal]) -> str:
    """A picture of the terminals, one below the other."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, file=nowhere, width=COLUMNS, force_terminal=True)
        for number, terminal in enumerate(terminals):
            if number:
                console.print()
            for line in shown(terminal.written.rstrip()):
                console.print(Text.from_ansi(line), soft_wrap=True)
        picture = console.export_svg(title="pixtral-serve", unique_id="session")
    # rich's picture would load a font from another host.
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("svg", nargs="?", type=Path, default=PICTURE)
    options = parser.parse_args()
    with stack() as up:
        picture = svg([up, *(ask(question) for question in QUESTIONS)])
        up.press_ctrl_c()
        up.end()
    options.svg.write_text(picture, "utf-8")


if __name__ == "__main__":
    main()
