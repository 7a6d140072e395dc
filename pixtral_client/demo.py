"""`pixtral-serve demo`: the whole stack, a picture, two questions, and what was encoded."""

import urllib.request
from itertools import pairwise
from pathlib import Path

from rich.table import Table

from pixtral_client.client import Client
from pixtral_client.results import Completion
from pixtral_client.stack import Stack
from pixtral_client.terminal import console, duration, print_answer

ENCODED = "pixtral_encoder_images_encoded_total"
QUESTIONS = ("What is in this picture?", "Which colours do you see in it?")
MAX_TOKENS = 48


def run_demo(stack: Stack, picture: Path) -> int:
    """Asks about a picture in two conversations. Returns the exit code: 0 where the second encoded
    nothing."""
    completions: list[Completion] = []
    counts = [images_encoded(stack)]
    with Client(stack.target) as client:
        for question in QUESTIONS:
            console.print(f"\n[bold]{picture.name}[/] [bold]> {question}[/]")
            messages = [{"role": "user", "content": [picture, question]}]
            stream = client.stream(messages, max_tokens=MAX_TOKENS, temperature=0.0)
            with stream:
                completion = print_answer(stream)
            if completion is None:
                console.print("[red]The stream ended without its summary.[/]")
                return 1
            completions.append(completion)
            counts.append(images_encoded(stack))
    console.print(_table(completions, counts))
    if counts[2] != counts[1] or not all(image.cached for image in completions[1].images):
        console.print("[red]The picture was encoded again.[/]")
        return 1
    console.print("[green]The second conversation encoded nothing: the embedding was there.[/]")
    return 0


def images_encoded(stack: Stack) -> int:
    """The encoder's own count, from its metrics."""
    url = f"http://{stack.addresses['encoder'].metrics}/metrics"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    return int(sum(float(line.split()[1]) for line in lines if line.startswith(f"{ENCODED} ")))


def _table(completions: list[Completion], counts: list[int]) -> Table:
    table = Table("", "first conversation", "second conversation", box=None, pad_edge=False)
    rows = {
        "queue": [duration(c.timings.queue) for c in completions],
        "encode": [duration(c.timings.encode) for c in completions],
        "first token": [duration(c.timings.time_to_first_token) for c in completions],
        "total": [duration(c.timings.total) for c in completions],
        "image cached": ["yes" if all(i.cached for i in c.images) else "no" for c in completions],
        "prompt tokens": [str(c.usage.prompt_tokens) for c in completions],
        "of them in the KV cache": [str(c.usage.cached_tokens) for c in completions],
        "images the encoder encoded": [str(b - a) for a, b in pairwise(counts)],
    }
    for name, values in rows.items():
        table.add_row(f"[dim]{name}[/]", *values)
    return table
