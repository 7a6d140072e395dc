import pytest

from pixtral_core.concurrency.shared_limit import SharedLimit
from pixtral_core.errors import Overloaded


def test_one_that_takes_all_it_can_leaves_a_quarter() -> None:
    limit = SharedLimit(100, refusal="full")
    limit.take("flood", 75)
    with pytest.raises(Overloaded, match="full") as refused:
        limit.take("flood", 1)
    assert refused.value.retry_after
    limit.take("calm", 25)
    assert not limit.has_room("calm", 1)
    limit.give_back("flood", 75)
    assert limit.total == limit.taken("calm") == 25


def test_the_last_quarter_is_divided_among_those_who_have_some() -> None:
    limit = SharedLimit(100)
    for party in ("flood", "a", "b"):
        limit.add(party, 25)
    assert limit.has_room("a", 8)
    assert not limit.has_room("a", 9)


def test_more_parties_than_there_is_to_share_are_let_in_as_long_as_there_is_room() -> None:
    limit = SharedLimit(8)
    for party in "abcdefgh":
        assert limit.has_room(party, 1)
        limit.take(party, 1)
    assert not limit.has_room("i", 1)


def test_without_shares_the_first_may_have_all() -> None:
    limit = SharedLimit(8, has_shares=False)
    limit.take("a", 8)
    assert limit.total == 8
