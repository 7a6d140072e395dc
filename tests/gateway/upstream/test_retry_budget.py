from types import SimpleNamespace

import pytest

from pixtral_gateway.upstream import retry_budget
from pixtral_gateway.upstream.retry_budget import RetryBudget


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(retry_budget, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def spent(budget: RetryBudget) -> int:
    """How many retries there are, all of them made."""
    count = 0
    while budget.spend():
        count += 1
    return count


def test_all_that_was_saved_can_be_spent_at_once_and_no_more(clock: SimpleNamespace) -> None:
    budget = RetryBudget("decoder", lambda: 8)
    assert spent(budget) == 8
    assert not budget.spend()


def test_in_a_long_outage_a_fifth_of_the_requests_is_retried(clock: SimpleNamespace) -> None:
    budget = RetryBudget("decoder", lambda: 8)
    spent(budget)
    retried = 0
    for _ in range(1000):
        budget.earn()
        retried += budget.spend()
    assert 195 <= retried <= 200


def test_few_requests_are_retried_once_a_second(clock: SimpleNamespace) -> None:
    budget = RetryBudget("decoder", lambda: 8)
    spent(budget)
    clock.now += 3
    assert spent(budget) == 3
    clock.now += 3600
    assert spent(budget) == 8
