"""Holds a history against what each answer must be, whatever broke meanwhile."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tests.faults.history import FINISHED, HUNG, LEFT, TRUNCATED, History, Record
from tests.faults.questions import Question

# A deadline of less is one that the workload means to miss.
SHORT_SECONDS = 10.0
# What a clock and a rounding may take off a deadline.
EARLY_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken. `kind` is one of: wrong, crossed, lost, unended, not recovered,
    not idle."""

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


def check(history: History, questions: Iterable[Question]) -> list[Violation]:
    known = {question.name: question for question in questions}
    shown: set[tuple[str, str]] = set()
    found: list[Violation] = []
    for record in sorted(history.records, key=lambda record: record.began):
        found += _answer(record, known)
        found += _ending(record, history)
        found += _tenant(record, shown, history)
        if not record.is_foreign:
            shown |= {(record.tenant, digest) for digest in record.digests}
    for window in history.windows:
        if window.recovered is None:
            found.append(Violation("not recovered", window.fault))
    return found


def _answer(record: Record, known: Mapping[str, Question]) -> Iterable[Violation]:
    """Whole where it is finished, and else the right one's beginning."""
    question = known[record.question]
    tokens, text = tuple(record.tokens), record.text
    if record.outcome == FINISHED:
        reason = "length" if question.is_long else "stop"
        is_right = (
            text == question.answer
            and record.finish_reason == reason
            and record.counted_tokens == len(question.tokens)
            and (tokens == question.tokens if record.protocol == "grpc" else True)
        )
    else:
        is_right = question.tokens[: len(tokens)] == tokens and question.answer.startswith(text)
    if not is_right:
        yield Violation("wrong", f"{_name(record)}: {text!r} for {question.answer!r}")


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


def _tenant(record: Record, shown: set[tuple[str, str]], history: History) -> Iterable[Violation]:
    """What another has shown is unknown by its name, and new to the caches."""
    if record.outcome != FINISHED:
        return
    if record.is_foreign:
        yield Violation("crossed", f"{_name(record)}: answered by a name that another gave")
        return
    if any(window.encodes_twice and window.overlaps(record) for window in history.windows):
        return
    seen: set[str] = set()
    for digest, is_cached in zip(record.digests, record.cached or (), strict=False):
        if is_cached and digest not in seen and (record.tenant, digest) not in shown:
            yield Violation("crossed", f"{_name(record)}: a picture was cached that is new to it")
        seen.add(digest)


def _name(record: Record) -> str:
    kind = "stream" if record.is_stream else "whole"
    return (
        f"{record.question} of {record.tenant} at {record.began:.2f} by {record.protocol} "
        f"({kind}) from gateway-{record.gateway}"
    )
