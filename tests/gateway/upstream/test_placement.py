import hashlib
from collections import Counter

import pytest

from pixtral_gateway.upstream.placement import rendezvous, with_bounded_load

ADDRESSES = [f"10.0.0.{i}:50052" for i in range(8)]
KEYS = [hashlib.sha256(bytes([i, j])).digest() for i in range(20) for j in range(100)]


def test_order_depends_on_key_and_addresses_alone() -> None:
    for key in KEYS[:50]:
        assert rendezvous(key, ADDRESSES) == rendezvous(key, reversed(ADDRESSES))
        assert sorted(rendezvous(key, ADDRESSES)) == ADDRESSES


def test_keys_spread_evenly() -> None:
    owned = Counter(rendezvous(key, ADDRESSES)[0] for key in KEYS)

    assert set(owned) == set(ADDRESSES)
    assert max(owned.values()) < 1.3 * len(KEYS) / len(ADDRESSES)


def test_only_the_keys_of_an_address_that_goes_move() -> None:
    gone, *rest = ADDRESSES
    for key in KEYS:
        preference = rendezvous(key, ADDRESSES)
        assert rendezvous(key, rest) == [address for address in preference if address != gone]


def test_owner_is_taken_while_it_is_not_loaded_above_the_others() -> None:
    assert with_bounded_load(["a", "b", "c"], {"a": 0, "b": 0, "c": 0}) == "a"
    assert with_bounded_load(["a", "b", "c"], {"a": 2, "b": 2, "c": 2}) == "a"


def test_request_of_a_loaded_owner_goes_to_the_next_in_its_order() -> None:
    assert with_bounded_load(["a", "b", "c"], {"a": 3, "b": 1, "c": 1}) == "b"
    assert with_bounded_load(["a", "b", "c"], {"a": 3, "b": 3, "c": 0}) == "c"


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_no_replica_is_loaded_beyond_the_bound(count: int) -> None:
    addresses = ADDRESSES[:count]
    load = dict.fromkeys(addresses, 0)
    for n in range(1, 201):
        load[with_bounded_load(addresses, load)] += 1
        assert max(load.values()) <= 1.25 * n / count + 1
