"""The table of limits: what each kind of limit allows, and how it reads."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixtral_core import limits
from pixtral_core.errors import InvalidRequest
from pixtral_core.limits import INT64_MAX, INT64_MIN, Count, Range


@pytest.mark.parametrize(
    ("limit", "within", "beyond"),
    [
        (Range("x", "", 0, 2), [0, -0.0, 1, 2], [-1e-300, math.nextafter(2, 3)]),
        (Range("x", "", 0, 1, low_inclusive=False), [5e-324, 1], [0, -0.0, 1.1]),
        (Range("x", "", 0, low_inclusive=False), [5e-324, 1e300], [0]),
        (Count("x", "", 3), [0, 3], [4]),
        (Count("x", "", 3, least=1), [1, 3], [0, 4]),
    ],
)
def test_a_limit_allows_its_edges_and_nothing_beyond(
    limit: limits.Limit, within: list[float], beyond: list[float]
) -> None:
    assert all(map(limit.allows, within))
    assert not any(map(limit.allows, beyond))


@given(st.sampled_from([math.nan, math.inf, -math.inf]), st.floats(allow_nan=False))
def test_a_range_has_finite_numbers_alone(value: float, low: float) -> None:
    assert not Range("x", "", low).allows(value)
    assert not Range("x", "", low, low_inclusive=False).allows(value)


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (Range("x", "", 0, 2), "must be 0 to 2"),
        (Range("x", "", 0, 1, low_inclusive=False), "must be above 0, up to 1"),
        (Range("x", "", 0, low_inclusive=False), "must be above 0"),
        (Range("x", "", 1, INT64_MIN), f"must be 1 to {INT64_MIN}"),
        (Count("x", "", 0, least=2), "must have 2 to 0 entries"),
        (Count("x", "", 0, of="characters"), "must have at most 0 characters"),
    ],
)
def test_a_refusal_names_the_field_and_what_it_must_be(limit: limits.Limit, text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        limit.check(-1 if isinstance(limit, Range) else 1, "messages[3].x")
    assert refused.value.violations == (("messages[3].x", text),)


def test_all_of_64_bits_is_named_by_its_size() -> None:
    assert f"{Range('x', '', INT64_MIN, INT64_MAX)}" == "an integer of 64 bits"


def test_no_bound_is_in_the_table_twice() -> None:
    names = [(limit.path, f"{limit}", limit.description) for limit in limits.TABLE.values()]
    assert len(set(names)) == len(names)
    assert {*limits.SAMPLING.values()} <= {*limits.TABLE.values()}
