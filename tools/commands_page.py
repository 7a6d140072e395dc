"""Writes docs/commands.md from the help texts; with --check, tells whether it is up to date.

python -m tools.commands_page [--check]
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from pixtral_cli.main import make_parser
from tools.generated_page import write_or_check

PAGE = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
HEAD = """\
# The command line

`python -m tools.commands_page` makes this page from the help texts. [settings.md](settings.md) has
the flags of `pixtral-serve gateway`, `encoder` and `decoder`.

<img src="pictures/session.svg" width="720" alt="A terminal: pixtral-serve up lists its tiers
as ready and prints their addresses and limits; pixtral-serve chat answers two questions about an
image, each with its time.">

`python -m tools.recorded_session` records this session anew.

"""
COLUMNS = "| argument | default | |\n|---|---|---|\n"


def page() -> str:
    return HEAD + "\n".join(_sections())


def _sections() -> Iterator[str]:
    for name, parser in _commands().items():
        if not parser.description:
            continue
        rows = "".join(
            _row(action) for action in parser._actions if action.help != argparse.SUPPRESS
        )
        section = f"## `pixtral-serve {name}`\n\n{parser.description}\n"
        if parser.epilog:
            section += f"\n{parser.epilog.strip()}\n"
        yield section + (f"\n{COLUMNS}{rows}" if rows else "")


def _commands() -> dict[str, argparse.ArgumentParser]:
    (commands,) = (
        action
        for action in make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return dict(commands.choices)


def _row(action: argparse.Action) -> str:
    if isinstance(action, argparse._HelpAction):
        return ""
    value = "" if action.nargs == 0 else _value(action)
    names = ", ".join(f"`{name}{value}`" for name in action.option_strings) or f"`{value.strip()}`"
    default = action.default
    shown = f"`{default}`" if default not in (None, "", [], False, argparse.SUPPRESS) else ""
    text = (action.help or "").replace(" (%(default)s)", "").replace("(%(default)s)", "")
    return f"| {names} | {shown} | {text.replace('|', chr(92) + '|')} |\n"


def _value(action: argparse.Action) -> str:
    if action.choices:
        return " " + "/".join(map(str, action.choices))
    name = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    return f" {name if isinstance(name, str) else name[0]}".replace("|", " or ")


def main(arguments: list[str]) -> int:
    return write_or_check(PAGE, page(), "tools.commands_page", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
