"""Reads lines of a conversation from the terminal, with history, and completes paths on Tab."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from pixtral_client.messages import has_image_suffix

_ENDS = " \t\n\"'"


class LineEditor:
    """Reads lines, and stores them for the next session in a file that only its owner can read."""

    def __init__(self, commands: Sequence[str], *, keeps_history: bool) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=_history() if keeps_history else InMemoryHistory(),
            completer=_Words(commands),
            complete_while_typing=False,
            enable_open_in_editor=True,
        )

    def read(self, goes_on: bool) -> str | None:
        """The next line, or None after Ctrl-D. Ctrl-C discards the line."""
        while True:
            try:
                line: str = self._session.prompt("… " if goes_on else "> ")
                return line
            except EOFError:
                return None
            except KeyboardInterrupt:
                if goes_on:
                    return ""


class _Words(Completer):  # type: ignore[misc]
    """Completes commands at the beginning of a line, and folders and images elsewhere."""

    def __init__(self, commands: Sequence[str]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True, file_filter=_is_folder_or_image)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        line = document.text_before_cursor
        if line.startswith("/") and "/" not in line[1:] and " " not in line:
            for command in self._commands:
                if command.startswith(line):
                    yield Completion(command, -len(line))
        start = max(line.rfind(end) for end in _ENDS) + 1
        word = line[start:].removeprefix("@")
        yield from self._paths.get_completions(Document(word, len(word)), event)


def history_file() -> Path:
    """The file of typed lines."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "pixtral-serve" / "chat_history"


def _history() -> History:
    path = history_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        # The conversation works even if the home directory is read-only.
        return InMemoryHistory()
    return FileHistory(str(path))


def _is_folder_or_image(name: str) -> bool:
    return has_image_suffix(name) or Path(name).is_dir()
