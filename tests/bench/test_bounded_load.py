import pytest

from bench.simulation.bounded_load import with_bounded_load


def test_owner_is_taken_while_it_is_not_loaded_above_the_others() -> None:
    assert with_bounded_load(["a", "b", "c"], {"a": 0, "b": 0, "c": 0}) == "a"
    assert with_bounded_load(["a", "b", "c"], {"a": 2, "b": 2, "c": 2}) == "a"


def test_request_of_a_loaded_owner_goes_to_the_next_in_its_order() -> None:
    assert with_bounded_load(["a", "b", "c"], {"a": 3, "b": 1, "c": 1}) == "b"
    assert with_bounded_load(["a", "b", "c"], {"a": 3, "b": 3, "c": 0}) == "c"


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_no_replica_is_loaded_beyond_the_bound(count: int) -> None:
    addresses = [f"10.0.0.{each}:50052" for each in range(count)]
    load = dict.fromkeys(addresses, 0)
    for n in range(1, 201):
        load[with_bounded_load(addresses, load)] += 1
        assert max(load.values()) <= 1.25 * n / count + 1
