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

SECONDS_A_LINE = 10.0


def print_answer(stream: Stream, *, is_plain: bool = False) -> tuple[str, Completion | None]:
    """Prints an answer while it arrives, and then its timings. On a terminal, Markdown is rendered
    unless `is_plain`. Returns the text and the completion, which is None if the stream broke
    off."""
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
    """A line with the times and tokens of a request, and the tokens and images that were cached."""
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
    """Shows the progress of a stack's processes, and how much of their weights they have loaded.

    On a terminal, each process has one line, which is updated. Elsewhere each new state is a new
    line. While processes load, a line every ten seconds shows the per cent that each has loaded.
    """

    def __init__(self, bars: Bars | None) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._loading: dict[str, int] = {}
        self._next_line = SECONDS_A_LINE

    def __call__(self, progress: Progress) -> None:
        if self._bars is None:
            self._print(progress)
            return
        if progress.name not in self._tasks:
            self._tasks[progress.name] = self._bars.add_task(progress.name, total=1, state="")
        state: str = progress.state
        if progress.percent is not None:
            # After a tier has loaded all its weights, it compiles and measures before it serves.
            state = f"loading {progress.percent}%" if progress.percent < 100 else "warming up"
        self._bars.update(
            self._tasks[progress.name], state=state, completed=int(progress.state == "ready")
        )

    def _print(self, progress: Progress) -> None:
        name, percent, time = progress.name, progress.percent, duration(progress.seconds)
        if percent is None:
            self._loading.pop(name, None)
            console.print(f"{name}: {progress.state} ({time})")
            return
        self._loading[name] = percent
        if progress.seconds >= self._next_line:
            self._next_line = progress.seconds + SECONDS_A_LINE
            loaded = ", ".join(f"{each} {share}%" for each, share in self._loading.items())
            console.print(f"weights: {loaded} ({time})")


@contextmanager
def start_progress() -> Iterator[StartProgress]:
    """A live display on a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield StartProgress(None)
        return
    with Bars(
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description:<8}"),
        TextColumn("{task.fields[state]:<12}"),
        TimeElapsedColumn(),
        console=console,
    ) as bars:
        yield StartProgress(bars)
