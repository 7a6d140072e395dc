"""Prints without rich: errors, and the output of commands that work without the extra `cli`."""

import os
import sys
from typing import Literal, TextIO

from pixtral_client.errors import PixtralError, Unavailable

_ANSI_CODES = {"red": 31, "green": 32, "yellow": 33}


class WrongArgument(ValueError):
    """An argument is wrong, and the command did nothing. The exit code is 2."""


def print_line(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def print_error(error: Exception) -> None:
    """Prints an error on standard error, with advice."""
    lines = [coloured(f"error: {printable(str(error))}", "red", sys.stderr)]
    if isinstance(error, Unavailable) and not error.reason:
        lines.append("Is a gateway running there? `pixtral-serve up MODEL` starts one.")
    if isinstance(error, PixtralError):
        lines += [printable(note) for note in getattr(error, "__notes__", ())]
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def printable(text: str) -> str:
    """`text` without characters that control a terminal, because an image can make a model write
    such characters."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def coloured(text: str, colour: Literal["red", "green", "yellow"], stream: TextIO) -> str:
    """`text` in a colour if `stream` is a terminal that shows colours and NO_COLOR is not set."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{_ANSI_CODES[colour]}m{text}\x1b[0m"
