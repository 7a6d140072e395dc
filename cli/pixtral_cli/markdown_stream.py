"""Shows an answer as Markdown on a terminal while it arrives."""

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

_FENCES = ("```", "~~~")


class MarkdownStream:
    """Prints each block when it is complete, and shows the incomplete block below the others.

    Use it as a context manager. Complete blocks stay in the terminal's scrollback, even if the
    answer is longer than the terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, transient=True, refresh_per_second=8)
        self._block = ""

    def write(self, text: str) -> None:
        self._block += text
        while (end := _end_of_block(self._block)) is not None:
            whole, self._block = self._block[:end], self._block[end:]
            self._print(whole)
        self._live.update(Markdown(self._block))

    def __enter__(self) -> "MarkdownStream":
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.update("")
        self._live.stop()
        self._print(self._block)

    def _print(self, block: str) -> None:
        if block.strip():
            self._console.print(Markdown(block))


def _end_of_block(text: str) -> int | None:
    """The index after the first block of a text, or None if the block has not ended. A blank line
    outside a fence ends a block."""
    fence = ""
    at = 0
    for line in text.splitlines(keepends=True):
        at += len(line)
        if not line.endswith("\n"):
            return None
        stripped = line.strip()
        if fence:
            if stripped.startswith(fence):
                fence = ""
        elif stripped.startswith(_FENCES):
            fence = stripped[:3]
        elif not stripped and text[:at].strip():
            return at
    return None
