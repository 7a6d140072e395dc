"""Sets the limit of admission by the capacity of the ready decoders."""

import asyncio
from collections.abc import Iterable
from typing import Final, NoReturn

from pixtral_gateway.tenancy.admission import Admission
from pixtral_gateway.upstream.replica import DecoderReplica

# One permit for each answer that the decoders accept, and one for a request that is being read,
# looked up, encoded or sent meanwhile.
PERMITS_PER_PLACE: Final = 2
SECONDS_BETWEEN_LOOKS: Final = 1.0


def room(decoders: Iterable[DecoderReplica]) -> int:
    """Permits for the decoders that are ready; 0 if none is."""
    places = sum(decoder.capacity for decoder in decoders if decoder.contract is not None)
    return PERMITS_PER_PLACE * places


async def follow_capacity(admission: Admission, decoders: Iterable[DecoderReplica]) -> NoReturn:
    """Keeps the limit of admission at the room of the ready decoders.

    While no decoder is ready, the limit does not change, so that the error says that no decoder is
    ready, and not that the gateway is overloaded.
    """
    while True:
        limit = room(decoders) or admission.limit
        if limit != admission.limit:
            admission.limit = limit
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
