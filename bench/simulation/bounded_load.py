"""Hashing with bounded load, the baseline for placement by remaining work."""

import math
from collections.abc import Mapping, Sequence

# How far above the mean load a replica may be before the next one is chosen.
LOAD_FACTOR = 1.25


def with_bounded_load(preference: Sequence[str], load: Mapping[str, int]) -> str:
    """The first address whose `load`, with one request more, stays within LOAD_FACTOR of the mean.

    Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016).
    """
    total = sum(load[address] for address in preference) + 1
    bound = math.ceil(LOAD_FACTOR * total / len(preference))
    return next(address for address in preference if load[address] < bound)
