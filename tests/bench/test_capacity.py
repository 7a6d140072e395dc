from typing import Any

import pytest

from bench.capacity import Capacity, unrefused

CAPACITY = Capacity(rate=10.0, idle=0.1)


def seen(**changed: Any) -> dict[str, Any]:
    return {"refused": 0, "failed": {}, "ttft": {"p99": 0.15}, **changed}


def test_what_is_refused_fails_or_comes_late_is_not_held() -> None:
    assert CAPACITY.why_not_held(seen()) == []
    assert CAPACITY.why_not_held(seen(refused=3)) == ["3 refused"]
    assert CAPACITY.why_not_held(seen(failed={"INTERNAL": 2})) == ["2 INTERNAL"]
    assert CAPACITY.why_not_held(seen(ttft={"p99": 0.21})) == ["first tokens' p99 210 ms of 200"]
    assert CAPACITY.why_not_held(seen(ttft=None))


def test_beyond_capacity_any_number_may_be_refused() -> None:
    assert CAPACITY.why_late(seen(refused=3)) == []
    assert CAPACITY.why_late(seen(refused=3, failed={"UNAVAILABLE": 1})) == ["1 UNAVAILABLE"]


def test_what_random_arrivals_leave_unrefused_is_erlangs() -> None:
    # With 8 places and one of them busy in the mean, one arrival in 109,601 finds all taken.
    rate = unrefused(8, answer=1.0, seconds=0.05 * 109_601)
    assert rate == pytest.approx(1.0, rel=0.02)
    assert unrefused(64, 0.5, 600) < 64 / 0.5
