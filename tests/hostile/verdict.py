"""Judges what an attack did to the innocent tenant and to the processes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

# How much slower an attack may make the slowest of a hundred answers.
MOST_TIMES_SLOWER = 3.0
# A shorter wait than this is one turn of a busy machine's scheduler, and nobody's harm.
LEAST_SECONDS = 0.5
ANSWERED = "OK"


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one request of the innocent tenant, on the monotonic clock."""

    kind: str
    began: float
    seconds: float
    outcome: str


@dataclass(slots=True)
class Observed:
    """The observations while an attack ran.

    Attributes:
        answers: those that were under way at some time of it.
        peak_mib: the most memory of each tier.
        ended: names of processes that are no longer there.
        said: what the attack itself found, such as a status that must not be.
        recovered: whether the innocent tenant was served as before soon afterwards.
    """

    answers: Sequence[Answer] = ()
    peak_mib: Mapping[str, float] = field(default_factory=dict)
    ended: Sequence[str] = ()
    said: Sequence[str] = ()
    recovered: bool = True


@dataclass(frozen=True, slots=True)
class Harm:
    """`is_time`: it is a matter of how long something took, which a busy machine can cause."""

    what: str
    is_time: bool = False

    def __str__(self) -> str:
        return self.what


def slowest(seconds: Iterable[float], share: float = 0.99) -> float:
    """The least number that `share` of them do not exceed: the largest of fewer than a hundred."""
    ordered = sorted(seconds)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else 0.0


def by_kind(answers: Iterable[Answer]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for answer in answers:
        found.setdefault(answer.kind, []).append(answer.seconds)
    return found


def allowed(calm: Mapping[str, float]) -> dict[str, float]:
    """The seconds within which 99 in 100 of each kind of request must be answered."""
    return {kind: max(LEAST_SECONDS, MOST_TIMES_SLOWER * seconds) for kind, seconds in calm.items()}


def judge(seen: Observed, calm: Mapping[str, float], bounds_mib: Mapping[str, float]) -> list[Harm]:
    """`calm` is the 99th percentile of each kind of request without an attack."""
    harms = [Harm(f"the {name} has ended") for name in seen.ended]
    harms += [Harm(what) for what in seen.said]
    harms += [
        Harm(f"the {tier} had {peak:,.0f} MiB of {bounds_mib[tier]:,.0f}")
        for tier, peak in seen.peak_mib.items()
        if peak > bounds_mib[tier]
    ]
    failed: dict[tuple[str, str], int] = {}
    for answer in seen.answers:
        if answer.outcome != ANSWERED:
            failed[answer.kind, answer.outcome] = failed.get((answer.kind, answer.outcome), 0) + 1
    harms += [
        Harm(f"{number} of the other tenant's requests ({kind}) ended with {outcome}")
        for (kind, outcome), number in failed.items()
    ]
    # One that was not answered says nothing of how long answers take.
    answered = by_kind(answer for answer in seen.answers if answer.outcome == ANSWERED)
    most = allowed(calm)
    harms += [
        Harm(
            f"the other tenant waited {slowest(seconds):.2f} s ({kind}), "
            f"{slowest(seconds) / calm[kind]:.1f} times its {calm[kind]:.2f} s",
            is_time=True,
        )
        for kind, seconds in answered.items()
        if slowest(seconds) > most[kind]
    ]
    if not seen.recovered:
        harms.append(Harm("the other tenant was not served as before when it was over"))
    return harms
