"""The output of the commands."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from pixtral_cli.markdown_stream import MarkdownStream
from pixtral_cli.plain_output import printable
from pixtral_cli.stack.process_stack import Progress
from pixtral_client.results import Completion
from pixtral_client.streams import Stream

answers = Console(highlight=False)
console = Console(highlight=False, soft_wrap=True)


def print_answer(stream: Stream, *, is_plain: bool = False) -> tuple[str, Completion | None]:
    """Prints an answer while it arrives, and its timings. On a terminal it renders Markdown, unless
    `is_plain`. Returns the text and the facts of the request, or None if the stream broke off."""
    texts = []
    if answers.is_terminal and not is_plain:
        with MarkdownStream(answers) as shown:
            for delta in stream:
                texts.append(delta.text)
                shown.write(printable(delta.text))
    else:
        try:
            for delta in stream:
                texts.append(delta.text)
                answers.out(printable(delta.text), end="")
        finally:
            answers.out()
    if stream.completion:
        console.print(f"[dim]{describe(stream.completion)}[/]")
    return "".join(texts), stream.completion


def describe(completion: Completion) -> str:
    """A line about the time of a request, and about what was cached."""
    timings, usage = completion.timings, completion.usage
    parts = [
        f"queue {duration(timings.queue)}",
        f"encode {duration(timings.encode)}",
        f"first token {duration(timings.time_to_first_token)}",
        f"total {duration(timings.total)}",
        f"{usage.prompt_tokens} + {usage.completion_tokens} tokens, {usage.cached_tokens} cached",
    ]
    if completion.images:
        cached = sum(image.cached for image in completion.images)
        parts.append(f"images cached: {cached} of {len(completion.images)}")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


class StartProgress:
    """Shows the progress of a stack's processes."""

    def __init__(self, bars: Bars | None) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, progress: Progress) -> None:
        if self._bars is None:
            console.print(f"{progress.name}: {progress.state} ({duration(progress.seconds)})")
            return
        if progress.name not in self._tasks:
            self._tasks[progress.name] = self._bars.add_task(progress.name, total=1, state="")
        done = int(progress.state == "ready")
        self._bars.update(self._tasks[progress.name], state=progress.state, completed=done)


@contextmanager
def start_progress() -> Iterator[StartProgress]:
    """A live display on a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield StartProgress(None)
        return
    with Bars(
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description:<8}"),
        TextColumn("{task.fields[state]:<9}"),
        TimeElapsedColumn(),
        console=console,
    ) as bars:
        yield StartProgress(bars)
