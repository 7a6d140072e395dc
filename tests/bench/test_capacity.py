from typing import Any

from bench.capacity import Capacity

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
