"""Holds a history against what each answer must be, whatever broke meanwhile."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.faults.clients import ARGUMENTS, TOOL, structure_of
from tests.faults.history import (
    CALM_SECONDS,
    CHOICES,
    FINISHED,
    HUNG,
    LEFT,
    TRUNCATED,
    History,
    Record,
)
from tests.faults.questions import Question

# A deadline of less is one that the workload means to miss.
SHORT_SECONDS = 10.0
# The seconds that a clock and a rounding may take off a deadline.
EARLY_SECONDS = 0.05
# Between a log-probability of the plain model's and one of the service's.
LOGPROB = 1e-2


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken. `kind` is one of: wrong, crossed, lost, unended, slow, not
    recovered, not idle, grows, logged."""

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


def check(
    history: History, questions: Iterable[Question], shown: set[tuple[str, str]] | None = None
) -> list[Violation]:
    """`shown` is what tenants have shown and asked before; what they do here is added."""
    known = {question.name: question for question in questions}
    shown = set() if shown is None else shown
    found: list[Violation] = []
    for record in sorted(history.records, key=lambda record: record.began):
        found += _answer(record, known)
        found += _ending(record, history)
        found += _time(record, history)
        found += _tenant(record, shown, history)
        if not record.is_foreign:
            seen = (_first(record), record.question, *record.digests)
            shown |= {(record.tenant, each) for each in seen}
    for window in history.windows:
        if window.recovered is None:
            found.append(Violation("not recovered", window.fault))
    return found


def _answer(record: Record, known: Mapping[str, Question]) -> Iterable[Violation]:
    """Whole where it is finished, and else the right one's beginning."""
    question = known[record.question]
    if not _is_right(record, question):
        said = record.text if record.call is None else record.call
        yield Violation("wrong", f"{_name(record)}: {said!r} for {question.answer!r}")


def _is_right(record: Record, question: Question) -> bool:
    tokens, text, is_over = tuple(record.tokens), record.text, record.outcome == FINISHED
    if record.form == "structure":
        only = structure_of(question)
        return text == only if is_over else only.startswith(text)
    if record.form == "tool":
        return text == "" and (not is_over or _is_the_call(record.call))
    if not is_over:
        return question.tokens[: len(tokens)] == tokens and question.answer.startswith(text)
    many = CHOICES if record.form == "choices" else 1
    return (
        text == question.answer
        and record.finish_reason == ("length" if question.is_long else "stop")
        and record.counted_tokens == many * len(question.tokens)
        and (tokens == question.tokens if record.protocol == "grpc" else True)
        and record.others == [question.answer] * (many - 1)
        and (record.form != "logprobs" or _are_near(record.logprobs, question.logprobs))
    )


def _is_the_call(call: tuple[str, str] | None) -> bool:
    if call is None or call[0] != TOOL["name"]:
        return False
    try:
        return bool(json.loads(call[1]) == ARGUMENTS)
    except ValueError:
        return False


def _are_near(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(
        abs(a - b) < LOGPROB for a, b in zip(one, other, strict=True)
    )


def _ending(record: Record, history: History) -> Iterable[Violation]:
    """One of finished, or a status that is allowed at the time."""
    if record.outcome in (HUNG, TRUNCATED):
        yield Violation(
            "unended", f"{_name(record)}: {record.outcome} after {record.seconds:.1f} s"
        )
        return
    if record.outcome == FINISHED or (record.outcome == LEFT and record.leaves):
        return
    if record.is_foreign and record.outcome == "NOT_FOUND":
        return
    is_short = record.timeout < SHORT_SECONDS
    if record.outcome == "DEADLINE_EXCEEDED" and is_short:
        if record.seconds < record.timeout - EARLY_SECONDS:
            yield Violation("lost", f"{_name(record)}: {record.seconds:.2f} s are no deadline")
        return
    if not any(record.outcome in window.may_end_with(record) for window in history.windows):
        faults = [window.fault for window in history.windows if window.overlaps(record)]
        yield Violation(
            "lost",
            f"{_name(record)}: {record.outcome} {record.reason} {record.detail!r} after "
            f"{record.seconds:.1f} s, during: {', '.join(faults) or 'nothing'}",
        )


def _time(record: Record, history: History) -> Iterable[Violation]:
    """Within what the faults of the time may cost."""
    meanwhile = [window for window in history.windows if window.overlaps(record)]
    most = history.pace * max((window.most_seconds for window in meanwhile), default=CALM_SECONDS)
    if record.outcome == FINISHED and record.seconds > most:
        faults = ", ".join(window.fault for window in meanwhile) or "nothing"
        yield Violation(
            "slow", f"{_name(record)}: {record.seconds:.1f} s of {most:.0f}, during: {faults}"
        )


def _tenant(record: Record, shown: set[tuple[str, str]], history: History) -> Iterable[Violation]:
    """A picture or question of another tenant is unknown by its name, and new to the caches."""
    if record.outcome != FINISHED:
        return
    if record.is_foreign:
        yield Violation("crossed", f"{_name(record)}: answered by a name that another gave")
        return
    # A second choice finds what the first has computed.
    is_own = record.form == "choices" or (record.tenant, _first(record)) in shown
    if record.cached_tokens and not is_own:
        yield Violation(
            "crossed",
            f"{_name(record)}: {record.cached_tokens} tokens of a prompt that is new to it",
        )
    if any(window.encodes_twice and window.overlaps(record) for window in history.windows):
        return
    seen: set[str] = set()
    for digest, is_cached in zip(record.digests, record.cached or (), strict=False):
        if is_cached and digest not in seen and (record.tenant, digest) not in shown:
            yield Violation("crossed", f"{_name(record)}: a picture was cached that is new to it")
        seen.add(digest)


def _first(record: Record) -> str:
    """The content of a prompt's first block: the tool, its first picture, or a text that no other
    has."""
    if record.form == "tool":
        return str(TOOL["name"])
    return record.digests[0] if record.digests else record.question


def _name(record: Record) -> str:
    kind = "stream" if record.is_stream else "whole"
    return (
        f"{record.question} of {record.tenant} at {record.began:.2f} by {record.protocol} "
        f"({kind}) from gateway-{record.gateway}"
    )
