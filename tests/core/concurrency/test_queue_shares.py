"""Room in the queue, shared by tenants."""

from contextlib import ExitStack

import pytest

from pixtral_core.concurrency.queue_shares import QueueShares
from pixtral_core.errors import Overloaded


def fill(stack: ExitStack, shares: QueueShares, tenant: str, amount: int) -> int:
    """How many of `amount` find room."""
    for count in range(1000):
        try:
            stack.enter_context(shares.room(tenant, amount))
        except Overloaded:
            return count
    raise AssertionError("there is no end")


def test_one_that_fills_the_queue_leaves_room_to_others() -> None:
    shares = QueueShares(100, "full")
    with ExitStack() as stack:
        assert fill(stack, shares, "eve", 10) == 10
        assert fill(stack, shares, "bob", 10) == 2
        assert fill(stack, shares, "ann", 5) == 1
        # There is an end to it.
        assert fill(stack, shares, "joe", 1) == 0
    with ExitStack() as stack:
        assert fill(stack, shares, "bob", 1) == 100


def test_who_has_more_than_a_share_finds_none_beyond_the_limit() -> None:
    shares = QueueShares(100, "full")
    with ExitStack() as stack:
        stack.enter_context(shares.room("bob", 45))
        assert fill(stack, shares, "eve", 5) == 11
        assert fill(stack, shares, "bob", 5) == 1
        assert fill(stack, shares, "bob", 1) == 0


def test_what_is_alone_finds_room_whatever_its_size() -> None:
    shares = QueueShares(10, "full")
    with shares.room("eve", 500), pytest.raises(Overloaded), shares.room("eve", 1):
        pass
    with shares.room("eve", 500):
        pass
