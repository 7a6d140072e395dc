"""From an answer and its references to a number between 0 and 1, by the rules of mistral-evals.

Those rules (https://github.com/mistralai/mistral-evals, `eval/metrics.py`, commit 70eecd8f) made
the model card's figures, so that these metrics follow them where other harnesses differ:

- ANLS has no threshold, where DocVQA's leaderboard counts a similarity below one half as 0;
- VQA match is the exact text, with its case, and divides the matches by three;
- a final answer is the first line after the last "answer:".

`anls_of_leaderboard` and `vqa_match_any_case` are the usual forms. No figure of the card is theirs.
"""

import re
import string
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Final

Metric = Callable[[str, Sequence[str]], float]

TOLERANCE: Final = 0.05
MATCHES_FOR_ALL: Final = 3

_ANSWER: Final = re.compile("answer:", re.IGNORECASE)
_MARKED_ANSWER: Final = re.compile(r"([aA]nswer)\**:\**")
_MARKUP: Final = re.compile(r"[*_\[\]()]")
_END: Final = set(string.punctuation.replace("%", "") + string.whitespace)


def final_answer(text: str) -> str:
    """The first line with text after the last "answer:", without Markdown; empty if there is
    none."""
    _, *after = _ANSWER.split(_MARKED_ANSWER.sub(r"\1:", text))
    lines = (line.strip() for line in after[-1].split("\n")) if after else ()
    return _MARKUP.sub("", next(filter(None, lines), ""))


def relaxed_correctness(answer: str, references: Sequence[str]) -> float:
    """1 if the answer fits a reference: a number within 5%, a lone letter as the first letter, any
    other text except for its case. A percentage fits its fraction, too."""
    return float(any(_fits(_plain(answer), _plain(each)) for each in references))


def explicit_relaxed_correctness(text: str, references: Sequence[str]) -> float:
    """`relaxed_correctness` of the final answer, and 0 without one."""
    answer = final_answer(text)
    return relaxed_correctness(answer, references) if answer else 0.0


def anywhere_relaxed_correctness(text: str, references: Sequence[str]) -> float:
    """The same. If there is no final answer, it is 1 where a reference seems to be in the text.
    This is generous."""
    answer = final_answer(text)
    if answer:
        return relaxed_correctness(answer, references)
    numbers = [_number(each) for each in references]
    found = any(_has_number(text, number) for number in numbers if number is not None)
    if not found and None in numbers:
        found = any(_has_phrase(text, each) for each in references)
    return float(found)


def anls(answer: str, references: Sequence[str], threshold: float = 0.0) -> float:
    """The greatest similarity with a reference: 1 less the edit distance over the longer length."""
    given = _words(answer)
    similarity = max(_similarity(given, _words(each)) for each in references)
    return similarity if similarity >= threshold else 0.0


def anls_of_leaderboard(answer: str, references: Sequence[str]) -> float:
    """`anls` with DocVQA's threshold of one half."""
    return anls(answer, references, threshold=0.5)


def vqa_match(answer: str, references: Sequence[str]) -> float:
    """A third for each person who gave exactly this answer, and 1 at most."""
    given = _unquoted(answer)
    return min(1.0, sum(_unquoted(each) == given for each in references) / MATCHES_FOR_ALL)


def vqa_match_any_case(answer: str, references: Sequence[str]) -> float:
    """`vqa_match` without regard to case and to punctuation at the end."""
    return vqa_match(_words(_unquoted(answer)), [_words(_unquoted(each)) for each in references])


def _fits(answer: str, reference: str) -> bool:
    given, wanted = _percentage(answer), _percentage(reference)
    if given is not None and wanted is not None:
        (number, is_percent), (target, is_target_percent) = given, wanted
        return (
            _is_near(number, target)
            or (is_percent and _is_near(number / 100, target))
            or (is_target_percent and _is_near(number, target / 100))
        )
    if len(reference) == 1 and reference.isalpha() and answer:
        return answer[0].lower() == reference.lower()
    return answer.lower() == reference.lower()


def _is_near(number: float, target: float) -> bool:
    return abs(number - target) / max(abs(target), 1e-10) <= TOLERANCE


def _percentage(text: str) -> tuple[float, bool] | None:
    """A number as it stands, and whether it is a percentage."""
    text = text.strip()
    try:
        return float(text.rstrip("%")), text.endswith("%")
    except ValueError:
        return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None


def _has_number(text: str, number: float) -> bool:
    exact = int(number) if number.is_integer() else number
    return format(exact, ",") in text or str(exact) in text


def _has_phrase(text: str, phrase: str) -> bool:
    """Whether one of the patterns stands in the text. They are in lower case, but the text is not
    changed: this is the published rule."""
    patterns = (f"is {phrase}", f"was {phrase}", f" {phrase}.", f"are {phrase}", f"\n\n{phrase}")
    return any(each.lower() in text for each in patterns)


def _plain(text: str) -> str:
    if any(each.isdigit() for each in text):
        return _without_end(text).replace(",", "").replace("$", "")
    return _unquoted(text)


def _words(text: str) -> str:
    return _without_end(" ".join(text.lower().split()))


def _unquoted(text: str) -> str:
    is_quoted = any(text.startswith(mark) and text.endswith(mark) for mark in "\"'")
    return text[1:-1] if is_quoted else text


def _without_end(text: str) -> str:
    """Without punctuation and white space at its end, but with a percent sign."""
    while text and (text[-1] in _END or text[-1].isspace()):
        text = text[:-1]
    return text


def _similarity(one: str, other: str) -> float:
    longer = max(len(one), len(other))
    return 1.0 - _edit_distance(one, other) / longer if longer else 1.0


def _edit_distance(one: str, other: str) -> int:
    row = list(range(len(one) + 1))
    for line, letter in enumerate(other, 1):
        corner, row[0] = row[0], line
        for column, each in enumerate(one, 1):
            cheapest = min(corner + (each != letter), row[column] + 1, row[column - 1] + 1)
            corner, row[column] = row[column], cheapest
    return row[-1]
