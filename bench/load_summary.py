"""The outcome of each request of a load, and their summary."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from bench.doors import Answer
from bench.loops import Arrival, percentile

SHARES = (0.5, 0.9, 0.95, 0.99)
REFUSED = "RESOURCE_EXHAUSTED"
# The load generator's own code, for answers that it cancels.
GIVEN_UP = "GIVEN_UP"


@dataclass(frozen=True, slots=True)
class Record:
    """One request of a load. All times are in seconds.

    Attributes:
        due: when the request was due, since the start of the load.
        late: how long after `due` the generator sent it.
        code: how the request ended.
        ended: from `due` to the end of the answer.
        first: from `due` to the first token; None if none arrived.
        gaps: times between the messages that have tokens.
        tokens: tokens of the answer.
        prompt_tokens: tokens of the prompt.
        cached_tokens: prompt tokens from the KV prefix cache.
        images_cached: whether all images came from a cache; None if the answer does not say.
    """

    due: float
    late: float
    code: str
    ended: float
    first: float | None
    gaps: tuple[float, ...]
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    images_cached: bool | None

    @classmethod
    def of(cls, arrival: Arrival, answer: Answer) -> Self:
        return cls(
            due=arrival.due,
            late=arrival.sent,
            code=arrival.code,
            ended=arrival.ended,
            first=arrival.first,
            gaps=tuple(later - earlier for earlier, later in pairwise(answer.came)),
            tokens=answer.tokens,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            images_cached=answer.images_cached,
        )


def summary(records: Sequence[Record], seconds: float) -> dict[str, Any]:
    """Summarizes requests that were due within `seconds`.

    Times are in seconds. A spread without values is None.
    """
    answered = [each for each in records if each.code == "OK"]
    codes = Counter(each.code for each in records)
    failed = {code: n for code, n in codes.items() if code not in ("OK", REFUSED, GIVEN_UP)}
    # The last answers may end after the time in which requests were due.
    over = max([seconds, *(each.due + each.ended for each in answered)])
    prompt = sum(each.prompt_tokens for each in answered)
    return {
        "sent": len(records),
        "seconds": seconds,
        "answered": len(answered),
        "refused": codes[REFUSED],
        "given_up": codes[GIVEN_UP],
        "failed": failed,
        "over_seconds": over,
        "answered_per_second": len(answered) / over,
        "output_tokens_per_second": sum(each.tokens for each in answered) / over,
        "prompt_tokens_per_second": prompt / over,
        "images_cached": sum(each.images_cached is True for each in answered),
        "images_encoded": sum(each.images_cached is False for each in answered),
        "prompt_cached_share": sum(e.cached_tokens for e in answered) / prompt if prompt else None,
        "ttft": spread(each.first for each in answered if each.first is not None),
        "tpot": spread(
            (each.ended - each.first) / (each.tokens - 1)
            for each in answered
            if each.first is not None and each.tokens > 1
        ),
        "itl": spread(gap for each in answered for gap in each.gaps),
        "e2el": spread(each.ended for each in answered),
        "refusal": spread(each.ended for each in records if each.code == REFUSED),
        "late": spread(each.late for each in records),
        **{
            f"ttft_{name}": spread(
                each.first
                for each in answered
                if each.first is not None and each.images_cached is cached
            )
            for name, cached in (("text", None), ("cached", True), ("encoded", False))
        },
    }


def spread(values: Iterable[float]) -> dict[str, float] | None:
    """Mean, percentiles and maximum; None if there are no values."""
    ordered = sorted(values)
    if not ordered:
        return None
    shares = {f"p{share * 100:g}": percentile(ordered, share) for share in SHARES}
    return {"mean": statistics.fmean(ordered), **shares, "max": ordered[-1]}
