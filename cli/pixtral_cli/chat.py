"""`pixtral-serve chat`: one question, or a conversation with images at any turn."""

import argparse
import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixtral_cli.plain_output import print_error
from pixtral_cli.terminal import console, print_answer
from pixtral_client.client import Client
from pixtral_client.errors import InvalidRequest, PixtralError
from pixtral_client.image_fetch import fetch
from pixtral_client.requests import Sampling, Tls

HELP = (
    "@cat.jpg or @https://… in a question shows a picture, as does /image PATH_OR_URL before it; "
    "/reset starts anew, /quit or Ctrl-D ends, Ctrl-C stops an answer."
)
_PICTURE = re.compile(r'(?:(?<=\s)|^)@(?:"([^"]+)"|(\S+?)(?=[,.;:!?)]*(?:\s|$)))')


def run_chat(options: argparse.Namespace) -> int:
    # A script that reads the answer wants nothing else on standard output.
    console.stderr = True
    files = (options.tls_ca, options.tls_certificate, options.tls_private_key)
    tls = Tls(*files) if options.tls or any(files) else None
    sampling: Sampling = {"max_tokens": options.max_tokens, "temperature": options.temperature}
    with Client(options.target, tls=tls) as client:
        conversation = Conversation(client, options.model, sampling)
        for name in options.image:
            conversation.add_picture(name)
        if options.question:
            conversation.ask(options.question)
        else:
            conversation.converse()
    return 0


def load_picture(name: str) -> bytes:
    """The file at a path or an http(s) URL.

    Raises:
        OSError, ValueError: the picture cannot be read.
    """
    if name.startswith(("http://", "https://")):
        return fetch(name)
    return Path(name).expanduser().read_bytes()


def parse(line: str) -> list[str | bytes]:
    """Splits a question at the pictures that it names by `@`; an `@word` that is neither a file nor
    a URL is text."""
    parts: list[str | bytes] = []
    start = 0
    for match in _PICTURE.finditer(line):
        name = match[1] or match[2]
        is_url = name.startswith(("http://", "https://"))
        if is_url or Path(name).expanduser().is_file():
            parts += [line[start : match.start()].strip(), load_picture(name)]
            start = match.end()
    parts.append(line[start:].strip())
    return [part for part in parts if part]


class Conversation:
    """The turns so far. Pictures are held as bytes: none is read or fetched twice."""

    def __init__(self, client: Client, model: str | None, sampling: Sampling) -> None:
        self._client = client
        self._model = model
        self._sampling = sampling
        self._messages: list[dict[str, Any]] = []
        self._pictures: list[bytes] = []

    def add_picture(self, name: str) -> None:
        """Shows a picture with the next question."""
        self._pictures.append(load_picture(name))

    def ask(self, question: str) -> None:
        """Prints the answer. The conversation stays as it was where something goes wrong. The text
        of an interrupted answer is kept.

        Raises:
            OSError, ValueError: a picture of the question cannot be read.
            PixtralError: the call has failed.
        """
        content = [*self._pictures, *parse(question)]
        turn = {"role": "user", "content": content}
        stream = self._client.stream([*self._messages, turn], model=self._model, **self._sampling)
        with stream:
            try:
                print_answer(stream)
            except KeyboardInterrupt:
                console.print("[dim]stopped[/]")
            except InvalidRequest:
                # Perhaps for a picture's sake: it must not spoil the next question, too.
                self._pictures = []
                raise
        if stream.text:
            self._messages += [turn, {"role": "assistant", "content": stream.text}]
            self._pictures = []

    def reset(self) -> None:
        self._messages, self._pictures = [], []

    def command(self, line: str) -> bool:
        """Does what a line that begins with a slash says. False: the conversation is over."""
        name, _, argument = line.partition(" ")
        match name:
            case "/quit" | "/exit":
                return False
            case "/reset":
                self.reset()
                console.print("[dim]a new conversation[/]")
            case "/image" if argument.strip():
                self.add_picture(argument.strip().strip('"'))
                console.print("[dim]shown with the next question[/]")
            case _:
                console.print(f"[dim]{HELP}[/]")
        return True

    def converse(self) -> None:
        """Reads questions from the terminal, or lines from standard input, to the end."""
        if sys.stdin.isatty():
            console.print(f"[dim]{HELP}[/]")
        for line in _lines():
            try:
                if line.startswith("/"):
                    if not self.command(line):
                        return
                elif line:
                    self.ask(line)
            except (OSError, ValueError, PixtralError) as error:
                print_error(error)


def _lines() -> Iterator[str]:
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    # Imported here: a question on the command line needs no line editor.
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()
    with contextlib.suppress(EOFError):
        while True:
            try:
                yield session.prompt("> ").strip()
            except KeyboardInterrupt:
                continue
