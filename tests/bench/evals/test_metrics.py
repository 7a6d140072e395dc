"""Scores that a person can check by hand."""

from collections.abc import Sequence

import pytest

from bench.evals.metrics import (
    anls,
    anls_of_leaderboard,
    anywhere_relaxed_correctness,
    explicit_relaxed_correctness,
    final_answer,
    relaxed_correctness,
    vqa_match,
    vqa_match_any_case,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The bar is high.\nFinal Answer: 42", "42"),
        ("**Final Answer:** **B**", "B"),
        ("Final answer**:** [Yes]", "Yes"),
        ("Answer: 1\nI was wrong.\nFINAL ANSWER: 2\nAnd so on.", "2"),
        ("Final Answer:\n\n  (C)  \nbecause", "C"),
        ("Final Answer: snake_case", "snakecase"),
        ("It is 42.", ""),
        ("Final Answer:", ""),
    ],
)
def test_the_final_answer_is_the_line_after_the_last_mark(text: str, expected: str) -> None:
    assert final_answer(text) == expected


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("105", ["100"], 1.0),  # 5% off
        ("105.1", ["100"], 0.0),
        ("95", ["100"], 1.0),
        ("0", ["0"], 1.0),
        ("0.01", ["0"], 0.0),  # no tolerance about zero
        ("$1,234.", ["1234"], 1.0),
        ("25%", ["0.25"], 1.0),
        ("0.25", ["25%"], 1.0),
        ("25%", ["25"], 1.0),
        ("25", ["0.25"], 0.0),  # neither is a percentage
        ("B. Paris", ["B"], 1.0),  # a lone letter is a choice
        ("Paris", ["B"], 0.0),
        ("b", ["B"], 1.0),
        ("yes", ["Yes"], 1.0),
        ('"Favorable"', ["Favorable"], 1.0),
        ("Favorable.", ["Favorable"], 0.0),  # punctuation counts where there is no digit
        ("2", ["two", "2"], 1.0),  # one reference is enough
        ("1:4", ["0.25"], 0.0),
    ],
)
def test_relaxed_correctness(answer: str, references: Sequence[str], expected: float) -> None:
    assert relaxed_correctness(answer, references) == expected
    assert explicit_relaxed_correctness(f"Final Answer: {answer}", references) == expected


@pytest.mark.parametrize(
    ("text", "references", "expected"),
    [
        ("There are 1,500 of them.", ["1500"], 1.0),
        ("There are 1500 of them.", ["1500.0"], 1.0),
        ("There are 15 of them.", ["1500"], 0.0),
        ("So it is paris, surely", ["Paris"], 1.0),
        ("So it is Paris, surely", ["Paris"], 0.0),  # the published rule lowers one side only
        ("Paris", ["Paris"], 0.0),  # a lone word is no pattern
        ("Final Answer: Rome. It is paris", ["Paris"], 0.0),  # a final answer alone counts
    ],
)
def test_an_answer_without_its_mark_counts_by_the_generous_metric_alone(
    text: str, references: Sequence[str], expected: float
) -> None:
    assert anywhere_relaxed_correctness(text, references) == expected
    assert explicit_relaxed_correctness(text, references) == 0.0


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("The  Coca-Cola company.", ["the coca-cola company"], 1.0),
        ("kitten", ["sitting"], 4 / 7),  # three edits of seven letters
        ("abcd", ["wxyz", "abxx"], 0.5),  # the nearer of two
        ("", ["abc"], 0.0),
        ("", ["."], 1.0),
        ("50%", ["50"], 2 / 3),  # a percent sign stays
    ],
)
def test_anls(answer: str, references: Sequence[str], expected: float) -> None:
    assert anls(answer, references) == pytest.approx(expected)


def test_anls_has_a_threshold_on_the_leaderboard_alone() -> None:
    assert anls("abcd", ["abxyz"]) == pytest.approx(0.4)
    assert anls_of_leaderboard("abcd", ["abxyz"]) == 0.0
    assert anls_of_leaderboard("abcd", ["abxy"]) == 0.5


@pytest.mark.parametrize(
    ("answer", "matches", "of_any_case"),
    [
        ("red", 1.0, 1.0),  # four people
        ("maroon", 2 / 3, 2 / 3),
        ("pink", 1 / 3, 1 / 3),
        ("blue", 0.0, 0.0),
        ("Red", 0.0, 1.0),
        ('"red"', 1.0, 1.0),
        ("red.", 0.0, 1.0),
    ],
)
def test_vqa_match_counts_people(answer: str, matches: float, of_any_case: float) -> None:
    people = ["red"] * 4 + ["maroon"] * 2 + ["pink"] + ["dark red"] * 3
    assert vqa_match(answer, people) == pytest.approx(matches)
    assert vqa_match_any_case(answer, people) == pytest.approx(of_any_case)
