"""The table of a run beside the model card's figures, and the same as JSON."""

from collections.abc import Sequence
from typing import Any

from bench.evals.benchmarks import BENCHMARKS, CARD
from bench.evals.scores import Score


def table(scores: Sequence[Score], model: str) -> str:
    """A table in Markdown, with a row for each benchmark of the card, and notes below it."""
    found = {score.benchmark.name: score for score in scores}
    rows = [["benchmark", "this run", "card", "scored", "cut"]]
    for benchmark in BENCHMARKS:
        score = found.get(benchmark.name)
        digits = 1 if benchmark.scale == 100 else 2
        card = f"{benchmark.card:.{digits}f}"
        if score is None:
            rows.append([benchmark.title, "not asked", card, "", ""])
        else:
            counts = [f"{score.scored} of {score.questions}", str(score.cut)]
            rows.append([benchmark.title, _value(score, digits), card, *counts])
    return "\n".join([*_aligned(rows), "", *_notes(scores, model)])


def as_json(scores: Sequence[Score], **about: Any) -> dict[str, Any]:
    """All metrics, not rounded. Those of a benchmark without a judge are between 0 and 1."""
    return {
        **about,
        "card": CARD,
        "benchmarks": {
            score.benchmark.name: {
                "questions": score.questions,
                "scored": score.scored,
                "cut": score.cut,
                "value": score.value,
                "card": score.benchmark.card,
                "metrics": dict(score.metrics),
            }
            for score in scores
        },
    }


def _value(score: Score, digits: int) -> str:
    if score.value is None:
        return "no answer"
    if score.margin is None:
        return f"{score.value:.{digits}f}"
    return f"{score.value:.{digits}f} ± {score.margin * score.unit:.{digits}f}"


def _notes(scores: Sequence[Score], model: str) -> list[str]:
    notes = [
        f"this run: {model}; ± is the 95% interval that the number of questions allows",
        f"card: Pixtral-12B-2409, {CARD}",
        "cut: answers that reached the benchmark's limit of tokens",
    ]
    lacking = [each for each in scores if each.scored < each.questions]
    notes += [
        f"{each.benchmark.title}: {each.questions - each.scored} questions have no score and are "
        "not in the figure; run again to ask them again"
        for each in lacking
    ]
    return notes


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines
