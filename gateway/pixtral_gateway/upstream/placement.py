"""Chooses the replica that a request goes to."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

# How far above the mean a replica may be loaded before the next one is asked.
LOAD_FACTOR = 1.25


def rendezvous(key: bytes, addresses: Iterable[str]) -> list[str]:
    """The addresses in the key's own order of preference, its owner first.

    Highest random weight hashing: gateways that know of each other nothing agree on the order,
    and where an address goes, only the keys that it owned move.
    """

    def weight(address: str) -> bytes:
        return hashlib.blake2b(key + address.encode(), digest_size=8).digest()

    return sorted(addresses, key=weight, reverse=True)


def with_bounded_load(preference: Sequence[str], load: Mapping[str, int]) -> str:
    """The first address whose `load`, with one request more, stays within LOAD_FACTOR of the mean.

    Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016). Where every
    gateway keeps its own load so, all of them together do, but for one request each.
    """
    total = sum(load[address] for address in preference) + 1
    bound = math.ceil(LOAD_FACTOR * total / len(preference))
    return next(address for address in preference if load[address] < bound)
