"""`pixtral-serve demo`: starts a stack, asks about images, and reports how many it encoded."""

import argparse
import signal
import tomllib
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pixtral_cli.stack.process_stack import Stack
from pixtral_cli.terminal import console, print_answer
from pixtral_cli.up import start_stack
from pixtral_client.client import Client

ENCODED = "pixtral_encoder_images_encoded_total"
MAX_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Ask:
    """A question about pictures, and the right answer, or None if that is not known."""

    pictures: tuple[Path, ...]
    question: str
    answer: str | None


def run_demo_command(options: argparse.Namespace) -> int:
    """Starts a stack, runs the demo on it and stops it. Returns the demo's exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    asks = read_questions(options.questions)
    stack = start_stack(options, listen="127.0.0.1:0", http_listen=None)
    try:
        return run_demo(stack, asks)
    finally:
        stack.close()
        console.print("[dim]everything is stopped[/]")


def read_questions(path: Path) -> list[Ask]:
    """The `[[ask]]` tables of a TOML file. Each has `pictures`, which are paths relative to the
    file, `question` and, if the right answer is known, `answer`.

    Raises:
        ValueError: the file or a table is wrong; the error names the table.
        FileNotFoundError: a picture does not exist.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))["ask"]
        asks = [_ask(path, number, table) for number, table in enumerate(tables, 1)]
    except (KeyError, TypeError, tomllib.TOMLDecodeError):
        raise ValueError(f"{path}: not a TOML file of [[ask]] tables") from None
    for picture in (picture for ask in asks for picture in ask.pictures):
        if not picture.is_file():
            raise FileNotFoundError(f"no picture at {picture}")
    return asks


def _ask(path: Path, number: int, table: dict[str, object]) -> Ask:
    match table:
        case {"pictures": list(names), "question": str(question)} if all(
            isinstance(name, str) for name in names
        ):
            answer = table.get("answer")
            if answer is None or isinstance(answer, str):
                pictures = tuple(path.parent / name for name in names)
                return Ask(pictures, question, answer)
    raise ValueError(f"{path}: [[ask]] {number} needs pictures, an array of paths, and a question")


def run_demo(stack: Stack, asks: Sequence[Ask]) -> int:
    """Asks each question in its own conversation. Returns the exit code: 0 if every known answer
    was given and no picture was encoded twice, else 1."""
    before = images_encoded(stack)
    right = known = shown = 0
    with Client(stack.target) as client:
        for ask in asks:
            names = " and ".join(picture.name for picture in ask.pictures)
            console.print(f"\n[bold]{names}[/] [bold]> {ask.question}[/]")
            messages = [{"role": "user", "content": [*ask.pictures, ask.question]}]
            stream = client.stream(messages, max_tokens=MAX_TOKENS, temperature=0.0)
            with stream:
                text, completion = print_answer(stream)
            if completion is None:
                console.print("[red]The stream ended without its summary.[/]")
                return 1
            shown += len(ask.pictures)
            if ask.answer is not None:
                known += 1
                right += text == ask.answer
                if text != ask.answer:
                    console.print(f"[red]not right: {ask.answer}[/]")
    encoded = images_encoded(stack) - before
    different = len({picture.read_bytes() for ask in asks for picture in ask.pictures})
    console.print(f"\n{right} of {known} answers are right" if known else "")
    console.print(
        f"{different} pictures were shown {shown} times in {len(asks)} conversations, and encoded "
        f"{encoded} times"
    )
    return 0 if right == known and encoded <= different else 1


def images_encoded(stack: Stack) -> int:
    """The number of images that the encoder has encoded, from its metrics."""
    url = f"http://{stack.addresses['encoder'].metrics}/metrics"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    return int(sum(float(line.split()[1]) for line in lines if line.startswith(f"{ENCODED} ")))
