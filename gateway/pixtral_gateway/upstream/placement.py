"""Chooses the replica that a request goes to."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from pixtral_gateway.upstream.decoder_work import Blocks, DecoderWork

# A token that another decoder has computed costs so much more than one that none has: to compute it
# again makes all that come after it wait, and takes room from what others have computed.
AGAIN = 3
# Decoders whose costs differ by less are taken for equal, and the first in the key's own order is
# chosen: the costs are not known better, and gateways then agree.
SLACK = 1.25


def rendezvous(key: bytes, addresses: Iterable[str]) -> list[str]:
    """The addresses in the key's own order of preference, its owner first.

    Highest random weight hashing: gateways that know of each other nothing agree on the order,
    and where an address goes, only the keys that it owned move.
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
    """The address whose decoder takes a prompt of so many tokens at the least cost.

        cost = (left + new + AGAIN * again) / rate

    `left` are tokens that the decoder has to compute before, `new` those of this prompt that it has
    not computed, `again` those of them that another decoder has, and `rate` how many it was seen to
    compute in a second. A decoder that was not yet seen to compute is taken for as fast as the
    mean of the others.

    It is the first in the order of preference whose cost is within SLACK of the least. Where no
    decoder is known to have any of the prompt, and `is_known` says that its images were shown
    before, another gateway has sent them: most likely to the first in that order, which is taken
    to have them.
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
