"""The rules for harm, tried on observations that are made up."""

from dataclasses import replace

import pytest

from tests.hostile.verdict import LEAST_SECONDS, Answer, Observed, judge, slowest

CALM = {"text": 1.0}
BOUNDS = {"gateway": 100.0}
UNHARMED = Observed(
    [Answer("text", float(number), 1.0, "OK") for number in range(10)], {"gateway": 99.0}
)


def answered(seconds: float, outcome: str = "OK") -> Observed:
    answers = [*UNHARMED.answers, Answer("text", 3.0, seconds, outcome)]
    return replace(UNHARMED, answers=answers)


def test_a_tenant_that_is_served_as_before_is_not_harmed() -> None:
    assert judge(UNHARMED, CALM, BOUNDS) == []
    assert judge(answered(3.0), CALM, BOUNDS) == []


@pytest.mark.parametrize(
    "seen",
    [
        answered(0.1, "RESOURCE_EXHAUSTED"),
        replace(UNHARMED, peak_mib={"gateway": 101.0}),
        replace(UNHARMED, ended=["gateway"]),
        replace(UNHARMED, said=["the attack was answered with INTERNAL"]),
        replace(UNHARMED, recovered=False),
    ],
    ids=["refused", "memory", "ended", "said", "not recovered"],
)
def test_each_kind_of_harm_is_seen_and_no_busy_machine_excuses_it(seen: Observed) -> None:
    (harm,) = judge(seen, CALM, BOUNDS)
    assert not harm.is_time


def test_more_than_three_times_the_calm_wait_is_harm_that_a_busy_machine_may_cause() -> None:
    (harm,) = judge(answered(3.1), CALM, BOUNDS)
    assert harm.is_time
    short = replace(UNHARMED, answers=[Answer("text", 3.0, LEAST_SECONDS, "OK")])
    assert judge(short, {"text": 0.01}, BOUNDS) == []


def test_the_slowest_is_the_99th_percentile() -> None:
    assert slowest([1.0] * 99 + [9.0]) == 1.0
    assert slowest([1.0] * 9 + [9.0]) == 9.0
    assert slowest([]) == 0.0
