import pytest
from prometheus_client import REGISTRY

from gateway.admission import Admission
from serving.errors import Overloaded


def in_use() -> float:
    return REGISTRY.get_sample_value("pixtral_gateway_permits_in_use") or 0.0


def test_beyond_the_limit_is_refused_at_once_with_a_time_to_retry() -> None:
    admission = Admission(2)
    with admission.permit(), admission.permit():
        with pytest.raises(Overloaded) as refused, admission.permit():
            pass

        assert refused.value.retry_after is not None
        assert refused.value.retry_after > 0
        assert admission.in_use == 2


def test_limit_is_shown_beside_what_is_in_use() -> None:
    Admission(7)
    assert REGISTRY.get_sample_value("pixtral_gateway_permits_limit") == 7


def test_permit_is_freed_however_the_request_ends() -> None:
    admission = Admission(1)
    before = in_use()

    def fail() -> None:
        with admission.permit():
            assert in_use() == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert in_use() == before
    with admission.permit():
        assert admission.in_use == 1
