import contextlib
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from pixtral_core.concurrency.shared_counts import SharedCounts
from pixtral_core.errors import Overloaded
from pixtral_gateway.tenancy.admission import Admission
from pixtral_gateway.tenancy.tenants import Tenant, Tenants


def in_use() -> float:
    return REGISTRY.get_sample_value("pixtral_gateway_permits_in_use") or 0.0


def test_beyond_the_limit_is_refused_at_once_with_a_time_to_retry() -> None:
    admission = Admission(2, Tenants(None))
    with admission.permit(Tenant("a"), 0), admission.permit(Tenant("a"), 0):
        with pytest.raises(Overloaded) as refused, admission.permit(Tenant("a"), 0):
            pass

        assert refused.value.retry_after is not None
        assert refused.value.retry_after > 0
        assert admission.in_use == 2


def test_limit_is_shown_beside_what_is_in_use() -> None:
    Admission(7, Tenants(None))
    assert REGISTRY.get_sample_value("pixtral_gateway_permits_limit") == 7


def test_memory_of_running_requests_is_shown_beside_its_limit() -> None:
    def value(name: str) -> float | None:
        return REGISTRY.get_sample_value(f"pixtral_gateway_{name}", {"use": "running"})

    admission = Admission(2, Tenants(None), max_image_bytes=100)
    with admission.permit(Tenant("a"), 1) as permit:
        permit.reserve(40)
        assert value("memory_bytes") == 40
    assert value("memory_bytes") == 0
    assert value("memory_limit_bytes") == 100


def test_permit_is_freed_however_the_request_ends() -> None:
    admission = Admission(1, Tenants(None))
    before = in_use()

    def fail() -> None:
        with admission.permit(Tenant("a"), 0):
            assert in_use() == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert in_use() == before
    with admission.permit(Tenant("a"), 0):
        assert admission.in_use == 1


def test_one_that_floods_leaves_a_quarter_to_the_others() -> None:
    admission = Admission(8, ["flood", "calm"])
    flood, calm = Tenant("flood"), Tenant("calm")
    with contextlib.ExitStack() as held:
        for _ in range(6):
            held.enter_context(admission.permit(flood, 0))
        with pytest.raises(Overloaded):
            held.enter_context(admission.permit(flood, 0))
        for _ in range(2):
            held.enter_context(admission.permit(calm, 0))
        with pytest.raises(Overloaded):
            held.enter_context(admission.permit(calm, 0))
    assert (flood.in_use, calm.in_use, admission.in_use) == (0, 0, 0)


@pytest.mark.parametrize("tenants", [2, 8, 9, 1000])
def test_however_many_tenants_there_are_the_last_quarter_serves_those_who_ask(tenants: int) -> None:
    names = [f"t{i}" for i in range(tenants)]
    admission = Admission(8, names)
    flood = Tenant("flood")
    with contextlib.ExitStack() as held:
        for _ in range(6):
            held.enter_context(admission.permit(flood, 0))
        with pytest.raises(Overloaded):
            held.enter_context(admission.permit(flood, 0))
        # Also one who asks for several choices.
        held.enter_context(admission.permit(Tenant("t0"), 0, answers=2))
        assert admission.in_use == 8


def test_who_is_alone_may_have_all() -> None:
    admission = Admission(8, Tenants(None))
    with contextlib.ExitStack() as held:
        for _ in range(8):
            held.enter_context(admission.permit(Tenant("a"), 0))


def test_images_of_running_requests_are_held_up_to_a_limit() -> None:
    admission = Admission(8, Tenants(None), max_image_bytes=100)
    with admission.permit(Tenant("a"), 1) as first:
        # A request that is alone has room, whatever its size.
        first.reserve(300)
        with admission.permit(Tenant("a"), 1) as second:
            second.reserve(0)
            with pytest.raises(Overloaded):
                second.reserve(1)
    with admission.permit(Tenant("a"), 1) as first, admission.permit(Tenant("a"), 1) as second:
        first.reserve(40)
        second.reserve(60)
        with pytest.raises(Overloaded):
            first.reserve(1)


def test_one_that_floods_with_images_leaves_a_quarter_to_the_others() -> None:
    admission = Admission(8, ["flood", "calm"], max_image_bytes=100)
    flood, calm = Tenant("flood"), Tenant("calm")
    with admission.permit(flood, 1) as one, admission.permit(calm, 1) as other:
        one.reserve(75)
        with pytest.raises(Overloaded):
            one.reserve(1)
        other.reserve(25)
        with pytest.raises(Overloaded):
            other.reserve(1)


def test_what_is_refused_anyway_is_told_before_it_is_read() -> None:
    def refused() -> float:
        labels = {"code": "RESOURCE_EXHAUSTED"}
        return REGISTRY.get_sample_value("pixtral_gateway_requests_total", labels) or 0.0

    admission = Admission(2, Tenants(None))
    tenant, limited = Tenant("a"), Tenant("b", requests_at_once=1)
    admission.check(tenant)
    before = refused()
    with admission.permit(limited, 0):
        admission.check(tenant)
        with pytest.raises(Overloaded) as told:
            admission.check(limited)
        assert told.value.reason == "TENANT_LIMIT"
        with admission.permit(tenant, 0), pytest.raises(Overloaded):
            admission.check(tenant)
    assert refused() == before + 2
    admission.check(limited)
    assert admission.in_use == 0


def workers(directory: Path, limit: int, **most: int) -> list[tuple[Admission, Tenant]]:
    """Two workers of one gateway: each one's admission, and the same tenant as each has it."""
    both = [SharedCounts(directory, own, 2) for own in range(2)]
    return [
        (Admission(limit, Tenants(None), counts=each, **most), Tenant.counted("a", each))
        for each in both
    ]


def test_workers_have_one_limit_of_permits(tmp_path: Path) -> None:
    (first, mine), (second, same) = workers(tmp_path, 3)
    with first.permit(mine, 0), first.permit(mine, 0), second.permit(same, 0):
        assert (first.in_use, second.in_use) == (3, 3)
        for admission, tenant in ((first, mine), (second, same)):
            with pytest.raises(Overloaded), admission.permit(tenant, 0):
                pass
        assert (first.in_use, mine.in_use, same.in_use) == (3, 3, 3)
    assert (first.in_use, second.in_use) == (0, 0)


def test_workers_have_one_limit_of_image_bytes(tmp_path: Path) -> None:
    (first, mine), (second, same) = workers(tmp_path, 4, max_image_bytes=100)
    with first.permit(mine, 1) as held, second.permit(same, 1) as other:
        held.reserve(60)
        with pytest.raises(Overloaded):
            other.reserve(60)
        other.reserve(40)
    with second.permit(same, 1) as alone:
        alone.reserve(1000)


def test_the_last_permit_is_not_given_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, mine), (second, same) = workers(tmp_path, 1)
    # Both have looked before either has taken it.
    monkeypatch.setattr(first, "_check_room", lambda *_: None)
    with second.permit(same, 0):
        with pytest.raises(Overloaded), first.permit(mine, 0):
            pass
        assert second.in_use == 1
    assert (first.in_use, mine.in_use) == (0, 0)
