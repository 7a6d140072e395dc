"""Whose turn the next step is."""

from dataclasses import dataclass

import pytest

from pixtral_decoder.engine.tenant_turns import TenantTurns


@dataclass(eq=False, slots=True)
class Asked:
    cache_salt: str | None
    num_tokens: int = 100
    num_computed_tokens: int = 0

    @property
    def is_prefill_chunk(self) -> bool:
        return self.num_computed_tokens < self.num_tokens


def answering(tenant: str) -> Asked:
    return Asked(tenant, num_computed_tokens=100)


def turns(slots: int = 8, kv_tokens: int = 10_000) -> TenantTurns[Asked]:
    return TenantTurns(slots, kv_tokens, lambda _: True)


def tenants(requests: list[Asked]) -> list[str | None]:
    return [each.cache_salt for each in requests]


def test_one_tenant_alone_is_left_as_it_is() -> None:
    running = [answering("eve") for _ in range(8)]
    turn = turns().next(running, [Asked("eve") for _ in range(50)])
    assert (turn.is_contended, turn.victims, turn.order, turn.held) == (False, [], [], [])
    assert turns().next([], []).order == []


def test_tenants_start_by_turns_and_each_ones_in_their_order() -> None:
    ready = [Asked("eve", number) for number in range(100, 104)] + [Asked("bob"), Asked("bob")]
    order = turns().next([], ready).order
    assert sorted(tenants(order)[:4], key=str) == ["bob", "bob", "eve", "eve"]
    assert [each for each in order if each.cache_salt == "eve"] == ready[:4]
    assert sorted(map(id, order)) == sorted(map(id, ready))


@pytest.mark.parametrize(
    ("others", "wanted", "paused"),
    [
        pytest.param(("bob",), 1, 1, id="as many as are wanted"),
        pytest.param(("bob",), 20, 4, id="no more than the others' share"),
        pytest.param(("bob", "ann", "joe"), 5, 6, id="of each of them"),
    ],
)
def test_who_has_more_than_a_share_makes_room(
    others: tuple[str, ...], wanted: int, paused: int
) -> None:
    running = [answering("eve") for _ in range(8)]
    ready = [Asked(tenant) for tenant in others for _ in range(wanted)]
    turn = turns().next(running, ready)
    assert len(turn.victims) == paused
    # The newest.
    assert turn.victims == running[::-1][:paused]


def test_nobody_makes_room_while_there_is_some_or_shares_are_kept() -> None:
    some = [answering("eve") for _ in range(7)]
    assert turns().next(some, [Asked("bob")]).victims == []
    fair = [answering(tenant) for tenant in ("eve", "bob") * 4]
    assert turns().next(fair, [Asked("bob"), Asked("eve")]).victims == []
    assert turns(slots=1).next([answering("eve")], [Asked("bob")]).victims == []


def test_more_tenants_than_slots_have_one_each() -> None:
    running = [answering("eve") for _ in range(4)]
    ready = [Asked(f"tenant-{number}") for number in range(10)]
    turn = turns(slots=4).next(running, ready)
    assert len(turn.victims) == 3


def test_prompts_wait_while_it_is_anothers_turn() -> None:
    made = turns()
    long = Asked("eve", 30_000, 8_000)
    first = made.next([long], [])
    assert not first.is_contended
    made.took([(long, 8_000)])
    short = Asked("bob", 40)
    turn = made.next([long, answering("ann")], [short])
    assert turn.is_contended
    assert (turn.held, turn.order) == ([long], [short])
    made.took([(short, 40)])
    # One that is new saves up no turns: now they are even, except for these forty.
    assert made.next([long], [Asked("bob", 40)]).held == []


def test_a_turn_that_cannot_be_taken_is_the_next_ones() -> None:
    made = turns()
    long, waiting = Asked("eve", 30_000, 5_000), Asked("bob", 40)
    assert made.next([long], [waiting]).held == [long]
    made.took([])
    # It holds half of the memory, which is its share.
    after = made.next([long], [waiting])
    assert (after.held, after.victims) == ([], [])
    made.took([(long, 1_000)])


def test_who_has_more_memory_than_a_share_makes_room_for_one_that_found_none() -> None:
    made = turns()
    running = [Asked("eve", 4_000, 4_000), Asked("eve", 3_000, 3_000), answering("bob")]
    waiting = Asked("bob", 5_000)
    assert made.next(running, [waiting]).victims == []
    made.took([(each, 1) for each in running])
    assert made.next(running, [waiting]).victims == [running[1]]
