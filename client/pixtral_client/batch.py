"""Many conversations at once: which request the client sends next, and when.

A `Batch` uses neither threads nor an event loop: `Client.map` and `AsyncClient.map` send what it
returns, and report the outcome.

The gateway determines how many requests run at once. After a refusal, the client runs as many as
the gateway has let in, and answers raise that number again, one at a time. If the gateway refuses a
request that runs alone, the client leaves time between requests, as much as would have prevented
the refusal. It gives that up if refusals come all the same.
"""

import heapq
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TextIO, TypeVar

from pixtral_client.errors import Overloaded, PixtralError
from pixtral_client.messages import Messages
from pixtral_client.results import Completion
from pixtral_client.retries import Tries

DEFAULT_CONCURRENCY: Final = 32
# This many times `concurrency` conversations may begin ahead of the next outcome.
_AHEAD: Final = 4
# After this many answers, or after as many as run at once if that is more, one more may run.
_ANSWERS_A_TRY: Final = 8
# After this many answers in a row, the time between requests is halved.
_ANSWERS_A_GAP: Final = 16
# After as many refusals in spite of the time between requests, without as many answers in a row, it
# is halved, too.
_FUTILE: Final = 3

CompletionT = TypeVar("CompletionT", bound=Completion)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[CompletionT]):
    """The end of one conversation of a `map`: either `completion` or `error` is not None.

    Attributes:
        index: the conversation's index in the input, from 0.
        completion: the answer.
        error: a `PixtralError`, or the `TypeError` or `ValueError` of messages that cannot be sent.
    """

    index: int
    completion: CompletionT | None = None
    error: Exception | None = None

    def unwrap(self) -> CompletionT:
        """The completion. Raises the error if there is none."""
        if self.completion is None:
            raise self.error or RuntimeError("neither a completion nor an error")
        return self.completion


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """The progress of a `map`.

    Attributes:
        answered: conversations with an answer.
        failed: conversations that failed.
        running: conversations that run.
        waiting: conversations that wait for another try.
        sent: requests so far, further tries included.
        total: length of the input; None if the input has no length.
        seconds: time since the start.
        is_over: True in the last report only.
    """

    answered: int
    failed: int
    running: int
    waiting: int
    sent: int
    total: int | None
    seconds: float
    is_over: bool

    @property
    def done(self) -> int:
        """Conversations that were answered or failed."""
        return self.answered + self.failed


Report = Callable[[BatchProgress], None]


@dataclass(slots=True)
class Item:
    """A conversation. `outgoing` and `tries` are set once it is made into a request."""

    index: int
    messages: Messages
    outgoing: Any = None
    tries: Tries | None = None

    @property
    def begun(self) -> Tries:
        if self.tries is None:
            raise RuntimeError("not made into a request yet")
        return self.tries


@dataclass(slots=True)
class _Pace:
    """How many requests may run, and when the next may begin."""

    most: int
    window: float = field(init=False)
    running: int = 0
    gap: float = 0.0
    not_before: float = 0.0
    _let_in: float | None = None
    _answers: int = 0
    # Refusals since the last answer, the gap that the last refusal led to, and how many refusals
    # came in spite of such a gap.
    _refusals: int = 0
    _learned: float = 0.0
    _futile: int = 0

    def __post_init__(self) -> None:
        self.window = self.most

    def has_room(self, now: float) -> bool:
        return self.running < int(self.window) and now >= self.not_before

    def begin(self, now: float) -> None:
        self.running += 1
        self.not_before = now + self.gap

    def answered(self, begun: float) -> None:
        self.running -= 1
        self._let_in = begun
        self._refusals = 0
        self.window = min(self.most, self.window + 1 / max(self.window, _ANSWERS_A_TRY))
        self._answers += 1
        if self._answers % _ANSWERS_A_GAP == 0:
            self._futile = 0
            self.gap = self.gap / 2 if self.gap > 1e-3 else 0.0

    def failed(self) -> None:
        self.running -= 1

    def refused(self, now: float, retry_after: float) -> None:
        self.running -= 1
        self._answers = 0
        self._refusals += 1
        self.window = max(1.0, min(self.window, float(self.running)))
        if self.running:
            return
        self.not_before = now + retry_after
        since = 0.0 if self._let_in is None else now - self._let_in
        if self._refusals == 1 and since >= self._learned > 0.0:
            self._futile += 1
        if self._futile >= _FUTILE:
            # Gaps do not prevent the refusals, which have another cause.
            self.gap /= 2
        else:
            # Bounded: if answers are long, the last admission is long ago without a limit at work.
            self.gap = min(since, max(1.0, retry_after)) + retry_after
        self._learned = self.gap


class Batch(Generic[CompletionT]):
    """The state of a `map`. All calls come from one thread."""

    def __init__(
        self,
        conversations: Iterable[Messages],
        concurrency: int,
        report: Report | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if concurrency < 1:
            raise ValueError("concurrency must be at least 1")
        self._input = iter(conversations)
        self._total = len(conversations) if isinstance(conversations, Sized) else None
        self._is_read = False
        self._begun = self._next_out = self._sent = self._answered = self._failed = 0
        self._ahead = _AHEAD * concurrency
        self._pace = _Pace(concurrency)
        self._since: dict[int, float] = {}
        self._waiting: list[tuple[float, int, Item]] = []
        self._outcomes: dict[int, Outcome[CompletionT]] = {}
        self._report = report
        self._clock = clock
        self._start = clock()

    @property
    def is_over(self) -> bool:
        return self._is_read and not (self._pace.running or self._waiting or self._outcomes)

    def take(self) -> Item | None:
        """The conversation to send now; None if there is none.

        It counts as running until `answered`, `failed` or `again`.
        """
        now = self._clock()
        if not self._pace.has_room(now):
            return None
        item = None
        if self._waiting and self._waiting[0][0] <= now:
            item = heapq.heappop(self._waiting)[2]
        elif not self._is_read and self._begun - self._next_out < self._ahead:
            item = self._read()
        if item is not None:
            self._pace.begin(now)
            self._since[item.index] = now
            self._sent += 1
        return item

    def wait(self) -> float | None:
        """Seconds until `take` may return another one without a new outcome; None if never."""
        if self.is_over:
            # The end of the input may become known after the last outcome.
            return 0.0
        now = self._clock()
        if self._pace.running >= int(self._pace.window):
            return None
        times = [due for due, _, _ in self._waiting[:1]]
        if not self._is_read and self._begun - self._next_out < self._ahead:
            times.append(now)
        return max(0.0, max(min(times), self._pace.not_before) - now) if times else None

    def answered(self, item: Item, completion: CompletionT) -> None:
        self._pace.answered(self._since.pop(item.index))
        self._answered += 1
        self._outcomes[item.index] = Outcome(item.index, completion)
        self._tell()

    def failed(self, item: Item, error: Exception) -> None:
        self._since.pop(item.index)
        self._pace.failed()
        self._failed += 1
        self._outcomes[item.index] = Outcome(item.index, error=error)
        self._tell()

    def again(self, item: Item, error: PixtralError, seconds: float) -> None:
        """Schedules another try after this error, in `seconds`."""
        now = self._clock()
        self._since.pop(item.index)
        if isinstance(error, Overloaded):
            self._pace.refused(now, error.retry_after or seconds)
        else:
            self._pace.failed()
        heapq.heappush(self._waiting, (now + seconds, item.index, item))
        self._tell()

    def ready(self) -> Iterator[Outcome[CompletionT]]:
        """The next outcomes in the order of the input, as far as they are known."""
        while (outcome := self._outcomes.pop(self._next_out, None)) is not None:
            self._next_out += 1
            yield outcome
        if self.is_over:
            self._tell()

    def close(self) -> None:
        """Ends the line of progress, also when the caller abandons a `map`."""
        if isinstance(self._report, _Line):
            self._report.close()

    def _read(self) -> Item | None:
        try:
            messages = next(self._input)
        except StopIteration:
            self._is_read = True
            return None
        self._begun += 1
        return Item(self._begun - 1, messages)

    def _tell(self) -> None:
        if self._report is not None:
            self._report(
                BatchProgress(
                    answered=self._answered,
                    failed=self._failed,
                    running=self._pace.running,
                    waiting=len(self._waiting),
                    sent=self._sent,
                    total=self._total,
                    seconds=self._clock() - self._start,
                    is_over=self.is_over,
                )
            )


def reporter(progress: bool | Report) -> Report | None:
    """Receives a `map`'s progress: none, a line on standard error, or the caller's function."""
    if callable(progress):
        return progress
    return _Line(sys.stderr) if progress else None


class _Line:
    """A line that is rewritten on a terminal; elsewhere, a new line every ten seconds."""

    _WIDTH: Final = 24

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._every = 0.1 if self._is_terminal else 10.0
        self._next = 0.0

    def __call__(self, progress: BatchProgress) -> None:
        if progress.seconds < self._next and not progress.is_over:
            return
        self._next = progress.seconds + self._every
        text = self._text(progress)
        self._stream.write(f"\r\x1b[K{text}" if self._is_terminal else f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        if self._is_terminal and self._next:
            self._stream.write("\n")

    def _text(self, progress: BatchProgress) -> str:
        done, total = progress.done, progress.total
        parts = [f"{done} answered" if total is None else f"{done}/{total}"]
        if total:
            filled = self._WIDTH * done // total
            parts.insert(0, f"[{'#' * filled}{'.' * (self._WIDTH - filled)}]")
        rate = done / progress.seconds if progress.seconds > 0 else 0.0
        parts.append(f"{rate:.1f}/s")
        if total and rate and done < total:
            minutes, seconds = divmod(round((total - done) / rate), 60)
            parts.append(f"{minutes}:{seconds:02} left")
        if progress.failed:
            parts.append(f"{progress.failed} failed")
        if progress.waiting:
            parts.append(f"{progress.waiting} to be sent again")
        return "  ".join(parts)
