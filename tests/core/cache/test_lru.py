import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixtral_core.cache.lru import ByteLru


def test_the_least_recently_used_goes_first() -> None:
    lru: ByteLru[str, int] = ByteLru(3)
    for name in "abc":
        lru.put(name, ord(name), 1)
    assert lru.get("a") == ord("a")
    lru.put("d", 0, 1)
    assert "b" not in lru
    assert all(name in lru for name in "acd")


def test_a_value_larger_than_the_bound_displaces_nothing() -> None:
    lru: ByteLru[str, str] = ByteLru(10)
    lru.put("small", "kept", 4)
    lru.put("huge", "not kept", 11)
    assert lru.get("huge") is None
    assert lru.get("small") == "kept"


def test_a_replaced_value_counts_once() -> None:
    lru: ByteLru[str, int] = ByteLru(10)
    lru.put("a", 1, 6)
    lru.put("a", 2, 7)
    assert (lru.get("a"), lru.nbytes, len(lru)) == (2, 7, 1)
    assert lru.pop("a") == 2
    assert (lru.pop("a"), lru.nbytes, len(lru)) == (None, 0, 0)


def test_a_negative_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        ByteLru(-1)


operations = st.lists(
    st.tuples(st.sampled_from(["put", "get", "pop"]), st.integers(0, 5), st.integers(0, 12))
)


@given(st.integers(0, 20), operations)
def test_the_bound_holds_and_no_key_gives_anothers_value(
    bound: int, steps: list[tuple[str, int, int]]
) -> None:
    lru: ByteLru[int, tuple[int, int]] = ByteLru(bound)
    for step, (verb, key, size) in enumerate(steps):
        if verb == "put":
            lru.put(key, (key, step), size)
        elif verb == "get":
            value = lru.get(key)
            assert value is None or value[0] == key
        else:
            lru.pop(key)
        assert 0 <= lru.nbytes <= bound
