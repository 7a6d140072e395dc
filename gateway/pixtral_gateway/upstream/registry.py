"""All replicas of the other tiers, and which of them fit together."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from pixtral_core.errors import Unavailable
from pixtral_gateway.upstream.discovery import Group
from pixtral_gateway.upstream.replica import (
    RETRY_SECONDS,
    Contract,
    DecoderReplica,
    EncoderReplica,
    Replica,
)

R = TypeVar("R", bound=Replica)


@dataclass(slots=True)
class Tiers:
    """All replicas that this gateway knows of.

    Attributes:
        width: width of embeddings by the gateway's own checkpoint.
        stall_seconds: a replica that owes answers and sends none for this long counts as hung.
    """

    encoders: Group[EncoderReplica]
    decoders: Group[DecoderReplica]
    width: int
    stall_seconds: float
    _broken: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """Starts to watch the replicas. Returns once a decoder can serve."""
        changed = asyncio.Event()
        self._watch(self.encoders, changed)
        self._watch(self.decoders, changed)
        while not any(decoder.contract for decoder in self.decoders):
            changed.clear()
            await changed.wait()

    async def failed(self) -> None:
        """Returns once a watch over the replicas has failed, after which the registry is out of
        date."""
        await self._broken.wait()

    async def stop(self) -> None:
        await asyncio.gather(self.encoders.stop(), self.decoders.stop())

    def contract(self, adapter: str = "") -> Contract:
        """The contract for the next request; with `adapter`, only of decoders that have it.

        Raises Unavailable without a decoder.

        During a rolling upgrade there may be two contracts. A contract that has encoders wins over
        one that has none, and then the contract with more decoders wins.
        """
        decoders = Counter(
            d.contract for d in self.decoders if d.contract is not None and d.has(adapter)
        )
        if not decoders:
            raise Unavailable("no decoder is ready", RETRY_SECONDS)
        encodable = {encoder.contract for encoder in self.encoders}
        return max(decoders, key=lambda c: (c in encodable, decoders[c], c.fingerprint))

    def _watch(self, group: Group[R], changed: asyncio.Event) -> None:
        def watch(replica: R) -> Coroutine[None, None, None]:
            return replica.watch(self.width, changed, group, self.stall_seconds)

        group.start(watch, self._broken)

    @property
    def context_length(self) -> int:
        """The most tokens that fit on every decoder that has answered. Raises Unavailable if none
        has."""
        lengths = [decoder.context_length for decoder in self.decoders if decoder.fits]
        if not lengths:
            raise Unavailable("no decoder is ready", RETRY_SECONDS)
        return min(lengths)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The model's adapters on any decoder that has answered, by name."""
        return tuple(sorted(frozenset().union(*(d.adapters for d in self.decoders if d.fits))))


def under(replicas: Iterable[R], contract: Contract) -> dict[str, R]:
    """The ready replicas of a contract, by address."""
    return {r.address: r for r in replicas if r.contract == contract}
