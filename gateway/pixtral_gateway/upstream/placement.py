"""Chooses the replica for a request."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from pixtral_gateway.upstream.decoder_work import Blocks, DecoderWork

# The extra cost of a token that another decoder has computed: computing it again delays all later
# requests, and takes room from computed prompts.
AGAIN = 3
# Decoders whose costs differ by at most this factor count as equal, and the first in the key's own
# order is chosen. Costs are not known more exactly, and gateways thus choose the same decoder.
SLACK = 1.25


def rendezvous(key: bytes, addresses: Iterable[str]) -> list[str]:
    """The addresses in the key's own order of preference, its owner first.

    Highest random weight hashing: gateways that know nothing of each other agree on the order. When
    an address goes, only the keys that it owned move.
    """

    def weight(address: str) -> bytes:
        return hashlib.blake2b(key + address.encode(), digest_size=8).digest()

    return sorted(addresses, key=weight, reverse=True)


def by_work(
    preference: Sequence[str],
    works: Mapping[str, DecoderWork],
    blocks: Blocks,
    tokens: int,
    *,
    is_known: bool = False,
) -> str:
    """The address of the decoder with the least cost for a prompt of this many tokens.

        cost = (left + new + AGAIN * again) / rate

    `left` are tokens that the decoder has to compute first, `new` those of this prompt that it has
    not computed, `again` those of them that another decoder has computed, and `rate` the measured
    number of tokens that it computes in a second. A decoder without a measured rate has the mean of
    the others.

    Among the addresses within SLACK of the least cost, the first in the order of preference wins.
    `is_known` means that an earlier request had the prompt's images. If this gateway knows of no
    decoder that has computed any part of the prompt, another gateway sent that request, most likely
    to the first address in the order of preference. This function then assumes that the first
    decoder has computed the prompt.
    """
    seen = [rate for address in preference if (rate := works[address].tokens_per_second)]
    usual = sum(seen) / len(seen) if seen else 1.0
    new = {address: works[address].new_tokens(blocks, tokens) for address in preference}
    if is_known and min(new.values()) == tokens:
        new[preference[0]] = 1
    fewest = min(new.values())

    def cost(address: str) -> float:
        work = works[address]
        rate = work.tokens_per_second or usual
        again = new[address] - fewest
        return (work.left(rate if seen else 0.0) + new[address] + AGAIN * again) / rate

    costs = {address: cost(address) for address in preference}
    least = min(costs.values())
    return next(address for address in preference if costs[address] <= SLACK * least)
