"""The engine's time that tenants' structured outputs may take."""

import pytest

from pixtral_decoder.grammar.mask_budget import (
    BURST_SECONDS,
    ORDINARY_SECONDS,
    SHARE,
    MaskBudget,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def budget(clock: Clock) -> MaskBudget:
    return MaskBudget(clock)


def test_what_is_ordinary_is_never_charged(budget: MaskBudget) -> None:
    assert all(budget.charge("a", ORDINARY_SECONDS) for _ in range(100_000))


def test_a_tenants_requests_spend_its_budget_together(budget: MaskBudget) -> None:
    slow = ORDINARY_SECONDS + BURST_SECONDS / 10
    taken = [budget.charge("a", slow) for _ in range(20)]
    assert taken.count(True) in (9, 10)
    assert taken == sorted(taken, reverse=True)
    # Neither another tenant's, nor what takes no longer than others.
    assert budget.charge("b", slow)
    assert budget.charge("a", ORDINARY_SECONDS)


def test_a_budget_comes_back_with_time(budget: MaskBudget, clock: Clock) -> None:
    assert not budget.charge("a", BURST_SECONDS * 100)
    clock.now += BURST_SECONDS / SHARE
    assert budget.charge("a", BURST_SECONDS / 2)
    assert not budget.charge("a", BURST_SECONDS)
