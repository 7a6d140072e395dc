"""The checker accepts a history that keeps the promises, and nothing else."""

from dataclasses import replace

import pytest

from tests.faults.checker import check
from tests.faults.clients import TOOL, structure_of
from tests.faults.history import (
    CALM_SECONDS,
    FINISHED,
    HUNG,
    LEFT,
    TRUNCATED,
    History,
    Record,
    Window,
)
from tests.faults.questions import Question

SHORT = Question(
    "single-0",
    (b"picture",),
    "What is it?",
    False,
    24,
    (5, 6, 2),
    "A ring.",
    logprobs=(-0.1, -0.2, -0.3),
)
LONG = Question("long-0", (b"picture",), "What is it?", True, 4, (5, 6, 2, 5), "A ring. A")
DIGEST = "d" * 64


def finished(question: Question = SHORT, began: float = 10.0) -> Record:
    """As it should be."""
    return Record(
        question.name,
        "ann",
        0,
        "grpc",
        True,
        (DIGEST,),
        60.0,
        False,
        False,
        began,
        ended=began + 1,
        tokens=list(question.tokens),
        text=question.answer,
        outcome=FINISHED,
        finish_reason="length" if question.is_long else "stop",
        cached=(False,),
        counted_tokens=len(question.tokens),
    )


def ended_with(outcome: str, tokens: int = 0, **other: object) -> Record:
    text = SHORT.answer[: 2 * tokens]
    record = replace(finished(), outcome=outcome, tokens=list(SHORT.tokens[:tokens]), text=text)
    return replace(record, **other)  # type: ignore[arg-type]


def kinds(*records: Record, windows: tuple[Window, ...] = ()) -> list[str]:
    found = check(History(list(records), list(windows)), (SHORT, LONG))
    return [violation.kind for violation in found]


def fault(**other: object) -> Window:
    window = Window("a fault", 5.0, frozenset({"UNAVAILABLE"}), ended=8.0, recovered=10.5)
    return replace(window, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize("question", [SHORT, LONG])
def test_right_answers_are_right(question: Question) -> None:
    assert kinds(finished(question)) == []
    assert kinds(replace(finished(question), protocol="http", tokens=[])) == []


@pytest.mark.parametrize(
    "change",
    [
        {"text": "A star."},
        {"text": "A rin"},
        {"tokens": [5, 6]},
        {"tokens": [5, 7, 2]},
        {"finish_reason": "length"},
        {"counted_tokens": 2},
    ],
)
def test_anything_else_is_wrong(change: dict[str, object]) -> None:
    assert kinds(replace(finished(), **change)) == ["wrong"]  # type: ignore[arg-type]


def test_what_was_told_before_an_end_is_the_right_ones_beginning() -> None:
    assert kinds(ended_with("UNAVAILABLE", 2), windows=(fault(),)) == []
    wrong = replace(ended_with("UNAVAILABLE", 2), tokens=[5, 9])
    assert kinds(wrong, windows=(fault(),)) == ["wrong"]


def test_a_status_needs_a_fault_that_allows_it_at_the_time() -> None:
    lost = ended_with("UNAVAILABLE")
    assert kinds(lost) == ["lost"]
    assert kinds(lost, windows=(fault(),)) == []
    assert kinds(lost, windows=(fault(recovered=9.0),)) == ["lost"]
    assert kinds(lost, windows=(fault(recovered=9.0, lingers=2.0),)) == []
    assert kinds(lost, windows=(fault(allows=frozenset({"INTERNAL"})),)) == ["lost"]
    assert kinds(lost, windows=(fault(gateway=1),)) == ["lost"]
    assert kinds(replace(lost, digests=()), windows=(fault(pictures_only=True),)) == ["lost"]


def test_a_deadline_passes_for_those_who_set_one() -> None:
    late = ended_with("DEADLINE_EXCEEDED")
    assert kinds(replace(late, timeout=0.9)) == []
    assert kinds(replace(late, timeout=5.0)) == ["lost"]
    assert kinds(late) == ["lost"]


@pytest.mark.parametrize("outcome", [HUNG, TRUNCATED])
def test_every_request_ends(outcome: str) -> None:
    assert kinds(ended_with(outcome), windows=(fault(),)) == ["unended"]


def test_who_leaves_has_left() -> None:
    assert kinds(ended_with(LEFT, 1, leaves=True)) == []


def test_what_another_tenant_has_shown_is_new_and_has_no_name() -> None:
    first = finished()
    other = replace(finished(began=20.0), tenant="bob", cached=(True,))
    assert kinds(first, other) == ["crossed"]
    assert kinds(first, replace(other, tenant="ann")) == []
    again = fault(began=19.0, recovered=22.0, encodes_twice=True)
    assert kinds(first, other, windows=(again,)) == []

    by_name = replace(ended_with("NOT_FOUND"), tenant="bob", is_foreign=True)
    assert kinds(first, by_name) == []
    assert kinds(first, replace(other, is_foreign=True, cached=(False,))) == ["crossed"]


def test_a_fault_that_is_not_over_is_told() -> None:
    assert kinds(windows=(fault(recovered=None),)) == ["not recovered"]


CALL = (TOOL["name"], '{"Farbe": "gr\\u00fcn"}')
FORMS: dict[str, dict[str, object]] = {
    "choices": {"others": [SHORT.answer], "counted_tokens": 6},
    "logprobs": {"logprobs": list(SHORT.logprobs)},
    "structure": {"text": structure_of(SHORT), "tokens": [7]},
    "tool": {"text": "", "tokens": [7], "call": CALL, "finish_reason": "tool_calls"},
    "upload": {},
}


@pytest.mark.parametrize("form", FORMS)
def test_what_else_is_asked_for_is_right_as_it_must_be(form: str) -> None:
    assert kinds(replace(finished(), form=form, **FORMS[form])) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("choices", {"others": []}),
        ("choices", {"others": ["A star."]}),
        ("logprobs", {"logprobs": [-0.1, -0.2, -0.5]}),
        ("logprobs", {"logprobs": [-0.1]}),
        ("structure", {"text": structure_of(SHORT).replace("ß", "\\u00df")}),
        ("tool", {"call": ("paint", '{"Gr\\u00f6": 1}')}),
        ("tool", {"call": None}),
        ("tool", {"text": "[TOOL_CALLS]"}),
    ],
)
def test_and_else_it_is_wrong(form: str, change: dict[str, object]) -> None:
    told = FORMS[form] | change
    assert kinds(replace(finished(), form=form, **told)) == ["wrong"]  # type: ignore[arg-type]


def test_an_answer_that_goes_on_nowhere_else_may_end_with_its_decoder() -> None:
    lost = replace(ended_with("UNAVAILABLE"), form="choices")
    once = fault(allows=frozenset(), allows_once=frozenset({"UNAVAILABLE"}))
    assert kinds(lost, windows=(once,)) == []
    assert kinds(replace(lost, form="plain"), windows=(once,)) == ["lost"]


def test_a_name_may_be_lost_midway_with_the_decoder_that_had_it() -> None:
    away = fault(allows=frozenset(), allows_once=frozenset({"UNAVAILABLE"}))
    midway = replace(ended_with("NOT_FOUND", 2), form="plain", deltas=2)
    assert kinds(midway, windows=(away,)) == []
    assert kinds(midway, windows=(fault(allows=frozenset()),)) == ["lost"]
    assert kinds(replace(midway, deltas=0), windows=(away,)) == ["lost"]
    assert kinds(replace(midway, digests=()), windows=(away,)) == ["lost"]


def test_a_name_may_be_lost_with_redis_by_those_who_uploaded() -> None:
    lost = replace(ended_with("NOT_FOUND"), form="upload")
    away = fault(allows=frozenset(), allows_uploads=frozenset({"NOT_FOUND"}))
    assert kinds(lost, windows=(away,)) == []
    assert kinds(replace(lost, form="plain"), windows=(away,)) == ["lost"]


def test_an_answer_may_take_as_long_as_the_faults_of_the_time_allow() -> None:
    late = replace(finished(), ended=finished().began + CALM_SECONDS + 1)
    assert kinds(late) == ["slow"]
    assert kinds(late, windows=(fault(),)) == ["slow"]
    assert kinds(late, windows=(fault(most_seconds=CALM_SECONDS + 2),)) == []
    over = fault(most_seconds=CALM_SECONDS + 2, recovered=late.began - 1)
    assert kinds(late, windows=(over,)) == ["slow"]

    slow_machine = History([late], pace=2.0)
    assert check(slow_machine, (SHORT, LONG)) == []


@pytest.mark.parametrize("digests", [(DIGEST,), ()])
def test_no_token_is_cached_of_a_prompt_that_is_new_to_a_tenant(digests: tuple[str, ...]) -> None:
    first = replace(finished(), digests=digests, cached=(False,) * len(digests), cached_tokens=0)
    other = replace(first, tenant="bob", began=20.0, ended=21.0, cached_tokens=64)
    assert kinds(first, other) == ["crossed"]
    assert kinds(first, replace(other, tenant="ann")) == []
    assert kinds(first, replace(other, cached_tokens=0)) == []


def test_tools_come_first_in_a_prompt() -> None:
    first = replace(finished(), form="tool", **FORMS["tool"])  # type: ignore[arg-type]
    again = replace(first, digests=("e" * 64,), began=20.0, ended=21.0, cached_tokens=64)
    assert kinds(first, again) == []
    assert kinds(first, replace(again, tenant="bob")) == ["crossed"]
