"""From answers to the scores of a benchmark."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from bench.evals.answers import Answer
from bench.evals.benchmarks import Benchmark
from bench.evals.judge import rating


@dataclass(frozen=True, slots=True)
class Score:
    """A row of the table.

    `questions` are those that the run has asked, `scored` those with an answer and, where a judge
    rates it, a rating. `cut` answers reached the limit of tokens. `metrics` are means over the
    scored; the first one is the card's. `margin` is half of its 95% interval, and None below two
    answers.
    """

    benchmark: Benchmark
    questions: int
    scored: int
    cut: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    margin: float | None = None

    @property
    def value(self) -> float | None:
        """The figure to compare with the card's, on its scale."""
        first = next(iter(self.metrics.values()), None)
        return first * self.unit if first is not None else None

    @property
    def unit(self) -> int:
        """Metrics are between 0 and 1, and ratings as the judge gives them."""
        return 1 if self.benchmark.is_judged else self.benchmark.scale


def scores_of(benchmark: Benchmark, answer: Answer, judgement: Answer | None) -> dict[str, float]:
    """The metrics of one answer; none where there is no answer or no rating."""
    if answer.error:
        return {}
    if benchmark.is_judged:
        rated = rating(judgement.answer) if judgement is not None else None
        return {} if rated is None else {"rating": rated}
    return {
        name: metric(answer.answer, answer.references) for name, metric in benchmark.metrics.items()
    }


def score(
    benchmark: Benchmark, answers: Sequence[Answer], each: Sequence[Mapping[str, float]]
) -> Score:
    """The score of all answers, of which `each` are the metrics."""
    scored = [(answer, found) for answer, found in zip(answers, each, strict=True) if found]
    cut = sum(answer.finish_reason == "length" for answer, _ in scored)
    if not scored:
        return Score(benchmark, len(answers), 0, cut)
    names = list(scored[0][1])
    means = {name: fmean(found[name] for _, found in scored) for name in names}
    values = [found[names[0]] for _, found in scored]
    margin = 1.96 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    metrics = averages(scored) if benchmark.is_judged else means
    return Score(benchmark, len(answers), len(scored), cut, metrics, margin)


def averages(scored: Sequence[tuple[Answer, Mapping[str, float]]]) -> dict[str, float]:
    """Ratings by the names of mistral-evals: over all, for each category and turn, and the mean of
    those means."""
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for answer, found in scored:
        for group in answer.groups.values():
            groups[f"{group}_average"].append(found["rating"])
    means = {name: fmean(ratings) for name, ratings in groups.items()}
    return {
        "micro_average_score": fmean(found["rating"] for _, found in scored),
        **({"macro_average_score": fmean(means.values())} if means else {}),
        **means,
    }
