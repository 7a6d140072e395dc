import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from pixtral_gateway.upstream.decoder_work import BLOCK_TOKENS, Blocks, DecoderWork, blocks_of
from pixtral_gateway.upstream.placement import AGAIN, by_work, rendezvous

ADDRESSES = [f"10.0.0.{i}:50052" for i in range(8)]
KEYS = [hashlib.sha256(bytes([i, j])).digest() for i in range(20) for j in range(100)]
IMAGE = hashlib.sha256(b"image").digest()
LONG = 32 * BLOCK_TOKENS


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Fleet:
    """Decoders as one gateway knows them, by the first letters of the alphabet."""

    def __init__(self, count: int, clock: Clock) -> None:
        self.works = {chr(ord("a") + each): DecoderWork(clock) for each in range(count)}
        self.at = ExitStack()

    def choose(
        self, blocks: Blocks, tokens: int = LONG, order: str = "", *, is_known: bool = False
    ) -> str:
        preference = order or "".join(self.works)
        return by_work(preference, self.works, blocks, tokens, is_known=is_known)

    def send(self, address: str, blocks: Blocks, tokens: int = LONG) -> None:
        """A request that waits there."""
        self.at.enter_context(self.works[address].sent(blocks, tokens, 1))

    def compute(self, address: str, blocks: Blocks, tokens: int = LONG, cached: int = 0) -> None:
        """A request from its beginning to its end."""
        with self.works[address].sent(blocks, tokens, 1) as prompt:
            prompt.begin(cached)


def prompt_of(name: str, tokens: int = LONG) -> Blocks:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:2], "big")
    return blocks_of([seed + each for each in range(tokens)], (), ())


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


def test_idle_decoders_of_which_nothing_is_known_are_chosen_by_the_keys_order(clock: Clock) -> None:
    fleet = Fleet(3, clock)
    assert fleet.choose(prompt_of("new"), order="bca") == "b"
    for work, rate in zip(fleet.works.values(), (1000, 1100, 950), strict=True):
        work.report(0, 0, rate)
    assert fleet.choose(prompt_of("new"), order="cab") == "c"


def test_a_prompt_goes_where_its_beginning_is_while_loads_are_equal(clock: Clock) -> None:
    fleet, cat = Fleet(3, clock), prompt_of("cat")
    fleet.compute("c", cat)
    assert fleet.choose(cat) == "c"
    for address in fleet.works:
        fleet.send(address, prompt_of(f"another at {address}"))
    assert fleet.choose(cat) == "c"


def test_a_hot_beginning_spreads_when_waiting_costs_more_than_computing_again(
    clock: Clock,
) -> None:
    fleet, cat = Fleet(2, clock), prompt_of("cat")
    fleet.compute("b", cat)
    for number in range(AGAIN - 1):
        fleet.send("b", prompt_of(f"before it {number}"))
        assert fleet.choose(cat) == "b"
    while fleet.choose(cat) == "b":
        number += 1
        assert number < 4 * AGAIN
        fleet.send("b", prompt_of(f"before it {number}"))
    fleet.compute("a", cat)
    fleet.at.close()
    # Both have it now.
    assert [fleet.choose(cat, order=order) for order in ("ab", "ba")] == ["a", "b"]


def test_a_burst_of_one_new_image_goes_where_its_first_request_went(clock: Clock) -> None:
    fleet, cat = Fleet(4, clock), prompt_of("cat")
    fleet.send("c", cat)
    assert fleet.choose(cat) == "c"


def test_a_slow_decoder_gets_less_and_is_not_left_out(clock: Clock) -> None:
    fleet = Fleet(3, clock)
    for address, rate in (("a", 1000), ("b", 1000), ("c", 500)):
        fleet.works[address].report(0, 0, rate)
    sent: Counter[str] = Counter()
    for number in range(250):
        prompt = prompt_of(f"new {number}")
        chosen = fleet.choose(prompt, order="cab")
        fleet.send(chosen, prompt)
        sent[chosen] += 1
    assert sent["c"] < 0.7 * min(sent["a"], sent["b"])
    assert sent["c"] > 0.2 * 250 / 3


def test_a_new_decoder_is_used_at_once(clock: Clock) -> None:
    fleet, cat = Fleet(3, clock), prompt_of("cat")
    for address in "ab":
        fleet.works[address].report(0, 0, 1000)
        for number in range(4):
            fleet.send(address, prompt_of(f"new {address} {number}"))
    fleet.compute("a", cat)
    assert fleet.choose(prompt_of("new")) == "c"


@pytest.mark.parametrize("count", [2, 3, 8])
def test_equal_decoders_get_equal_work(clock: Clock, count: int) -> None:
    fleet = Fleet(count, clock)
    sent: Counter[str] = Counter()
    for number in range(40 * count):
        prompt = prompt_of(f"new {number}")
        order = "".join(rendezvous(b"%d" % number, fleet.works))
        chosen = fleet.choose(prompt, order=order)
        fleet.send(chosen, prompt)
        sent[chosen] += 1
    assert len(sent) == count
    assert max(sent.values()) <= 1.35 * min(sent.values())


def test_answers_that_are_being_written_count_where_prompts_are_short(clock: Clock) -> None:
    fleet = Fleet(2, clock)
    for number in range(20):
        with fleet.works["a"].sent((), 30, 1) as prompt:
            prompt.begin(0)
            fleet.works["b"].report(0, number + 4, 0)
            assert fleet.choose((), 30, order="ba") == "a"


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("error", [None, TimeoutError, ConnectionError], ids=str)
def test_a_request_that_ends_leaves_no_work_behind(
    clock: Clock, error: type[Exception] | None, *, begins: bool
) -> None:
    work = DecoderWork(clock)

    def end() -> None:
        with work.sent(prompt_of("cat"), LONG, 3) as prompt:
            assert (work.tokens, work.answers) == (LONG, 3)
            if begins:
                prompt.begin(0)
                assert (work.tokens, work.answers) == (0, 3)
            if error is not None:
                raise error

    if error is None:
        end()
    else:
        with pytest.raises(error):
            end()
    assert (work.tokens, work.answers, work.left(0.0)) == (0, 0, 0)
    # A request that has not begun has computed nothing.
    assert work.new_tokens(prompt_of("cat"), LONG) == (1 if begins else LONG)


def test_other_gateways_requests_count_and_are_computed_meanwhile(clock: Clock) -> None:
    fleet = Fleet(2, clock)
    fleet.send("a", prompt_of("own"))
    for work in fleet.works.values():
        work.report(LONG, 1, 1000)
    # All that `a` reports is this gateway's own, and nothing of what `b` reports.
    assert [work.left(1000) for work in fleet.works.values()] == pytest.approx([LONG + 16] * 2)
    clock.now += 2.0
    assert fleet.works["b"].left(1000) == pytest.approx(LONG - 2000 + 16)
    assert fleet.works["a"].left(1000) == pytest.approx(LONG + 16)
    clock.now += 100.0
    assert fleet.works["b"].left(1000) == pytest.approx(16)


def test_what_another_gateway_has_sent_is_looked_for_where_the_order_begins(clock: Clock) -> None:
    fleet, cat = Fleet(3, clock), prompt_of("cat")
    fleet.send("b", prompt_of("another"))
    assert fleet.choose(cat, order="bca", is_known=True) == "b"
    assert fleet.choose(cat, order="bca") == "c"
    # But not against what this gateway knows itself.
    fleet.compute("a", cat)
    assert fleet.choose(cat, order="bca", is_known=True) == "a"


def test_a_beginning_that_an_answer_shows_to_be_gone_is_computed_anywhere(clock: Clock) -> None:
    fleet = Fleet(2, clock)
    for name in ("oldest", "cat", "newest"):
        fleet.compute("b", prompt_of(name))
    fleet.compute("b", prompt_of("cat"), cached=0)
    # The cat is there again. The one that was used before it was dropped before it.
    assert fleet.choose(prompt_of("cat")) == "b"
    assert fleet.choose(prompt_of("newest")) == "b"
    assert fleet.choose(prompt_of("oldest")) == "a"


def test_a_part_that_is_gone_is_counted_alone(clock: Clock) -> None:
    work, cat = DecoderWork(clock), prompt_of("cat")
    for cached in (0, LONG - BLOCK_TOKENS, LONG // 2):
        with work.sent(cat, LONG, 1) as prompt:
            prompt.begin(cached)
    assert work.new_tokens(cat, LONG + 5) == 5


def test_a_process_that_is_gone_has_computed_nothing(clock: Clock) -> None:
    work, cat = DecoderWork(clock), prompt_of("cat")
    with work.sent(cat, LONG, 1) as prompt:
        prompt.begin(0)
    work.report(5000, 3, 1000)
    work.forget()
    assert (work.new_tokens(cat, LONG), work.left(0.0), work.tokens_per_second) == (LONG, 0, 0)


def test_prompts_share_blocks_up_to_the_first_token_that_differs() -> None:
    tokens = list(range(LONG))
    other = [*tokens[: LONG // 2], 7, *tokens[LONG // 2 + 1 :]]
    both = _shared(blocks_of(tokens, (), ()), blocks_of(other, (), ()))
    assert both == LONG // 2 // BLOCK_TOKENS
    # The last block is not whole.
    assert len(blocks_of(tokens[:-1], (), ())) == LONG // BLOCK_TOKENS - 1


def test_prompts_with_another_image_or_tenant_or_adapter_share_what_comes_before_it() -> None:
    tokens = list(range(LONG))
    at = 3 * BLOCK_TOKENS + 5
    cat = blocks_of(tokens, [(at, IMAGE)], ("tenant", ""))
    assert _shared(cat, blocks_of(tokens, [(at, IMAGE)], ("tenant", ""))) == len(cat)
    assert _shared(cat, blocks_of(tokens, [(at, KEYS[0])], ("tenant", ""))) == 3
    assert _shared(cat, blocks_of(tokens, [(at, IMAGE)], ("another", ""))) == 0
    assert _shared(cat, blocks_of(tokens, [(at, IMAGE)], ("tenant", "adapter"))) == 0
    two = [(at, IMAGE), (at + 9, KEYS[0])]
    assert _shared(blocks_of(tokens, two, ()), blocks_of(tokens, two[:1], ())) == 3


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(each == there for each, there in zip(one, other, strict=True))
