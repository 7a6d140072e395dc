"""Sizes admission by the decoders that are ready."""

import asyncio
from collections.abc import Iterable
from typing import Final, NoReturn

from pixtral_gateway.tenancy.admission import Admission
from pixtral_gateway.upstream.replica import DecoderReplica

# For each answer that the decoders take: as many others are being read, looked up, encoded or sent.
PERMITS_PER_PLACE: Final = 2
SECONDS_BETWEEN_LOOKS: Final = 1.0


def room(decoders: Iterable[DecoderReplica]) -> int:
    """Permits for the decoders that are ready; 0 if none is."""
    places = sum(decoder.capacity for decoder in decoders if decoder.contract is not None)
    return PERMITS_PER_PLACE * places


async def follow_capacity(admission: Admission, decoders: Iterable[DecoderReplica]) -> NoReturn:
    """Keeps the limit at what there is room for.

    While no decoder is ready it stays as it was: clients read that no decoder is ready, and not
    that there is overload.
    """
    while True:
        limit = room(decoders) or admission.limit
        if limit != admission.limit:
            admission.limit = limit
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
