import pytest

from pixtral_core.concurrency import rate
from pixtral_core.concurrency.rate import Rate, Rates


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(rate, "monotonic", lambda: now[0])
    return now


def test_a_burst_is_free_and_a_debt_is_paid_at_the_rate(clock: list[float]) -> None:
    bytes_sent = Rate(100, 50)
    bytes_sent.spend(50)
    assert bytes_sent.wait() == 0
    bytes_sent.spend(30)
    assert bytes_sent.wait() == pytest.approx(0.3)
    clock[0] += 0.2
    assert bytes_sent.wait() == pytest.approx(0.1)
    # A long rest saves up one burst.
    clock[0] += 100
    assert bytes_sent.is_full()
    bytes_sent.spend(60)
    assert bytes_sent.wait() == pytest.approx(0.1)


def test_a_debt_has_a_bound_and_may_be_forgotten(clock: list[float]) -> None:
    bytes_sent = Rate(100, 0, most_debt=200)
    bytes_sent.spend(1000)
    assert bytes_sent.wait() == pytest.approx(2)
    bytes_sent.fill()
    assert bytes_sent.wait() == 0


def test_each_party_has_a_rate_and_an_idle_one_is_forgotten(clock: list[float]) -> None:
    rates = Rates(100, 50)
    rates.of("a").spend(10_000)
    assert rates.of("b").wait() == 0
    for number in range(1000):
        rates.of(f"idle {number}")
    assert len(rates) < 40
    assert rates.of("a").wait() > 90
