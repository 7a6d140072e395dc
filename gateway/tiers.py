"""The replicas of the other tiers: which are there, and which fit together."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import grpc

from gateway.discovery import Group
from gateway.metrics import REPLICAS
from pixtral.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc
from serving.errors import Unavailable

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 2.0
# A replica that is not there is asked often, so that it is found as soon as it comes.
SECONDS_BETWEEN_HANDSHAKES = 5.0
SECONDS_BETWEEN_ATTEMPTS = 0.5
# A replica too busy for a handshake is not gone: only so many in a row say that it hangs.
SLOW_HANDSHAKES = 3

# What a call ends with when the process behind it has gone, or goes.
GONE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})

RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Contract:
    """What an encoder and a decoder must have in common to work together."""

    model: str
    fingerprint: str
    width: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.model}, fingerprint {self.fingerprint}, {self.width} wide, {self.dtype}"


class Replica(ABC):
    """One process of another tier, at `address`.

    Attributes:
        contract: what it announced; None while it is not to be used.
        fits: it is of this gateway's model, by what it last announced.
        outstanding: answers to this gateway's requests that it has not ended yet.
    """

    tier: str

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.contract: Contract | None = None
        self.fits = False
        self.outstanding = 0
        self._channel = channel
        self._asked_to_look = asyncio.Event()

    @abstractmethod
    async def handshake(self) -> Contract:
        """Asks the process what it is. Raises AioRpcError."""

    def lost(self) -> None:
        """A call found the process gone: it is used again when it answers a handshake."""
        self._announce(None)
        self._asked_to_look.set()

    async def watch(self, width: int, changed: asyncio.Event) -> None:
        """Keeps `contract` true until cancelled; `changed` is set whenever it becomes one.

        A replica whose embeddings are not `width` wide is of another model, and never used.
        """
        slow, has_failed = 0, False
        while True:
            try:
                contract = await self.handshake()
            except grpc.aio.AioRpcError as error:
                if not has_failed:
                    code = error.code().name
                    logger.warning("%s %s does not answer: %s", self.tier, self.address, code)
                has_failed = True
                is_slow = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                slow = slow + 1 if is_slow else SLOW_HANDSHAKES
                if slow >= SLOW_HANDSHAKES:
                    self._announce(None)
            else:
                slow, has_failed = 0, False
                self.fits = contract.width == width
                if not self.fits:
                    logger.warning("%s %s is of another model", self.tier, self.address)
                self._announce(contract if self.fits else None)
                changed.set()
            await self._pause()

    def retire(self) -> None:
        """It is not used for anything new; calls under way go on."""
        self._announce(None)

    async def close(self) -> None:
        self._set(None)
        await self._channel.close()

    async def _pause(self) -> None:
        self._asked_to_look.clear()
        if self.contract is None:
            await asyncio.sleep(SECONDS_BETWEEN_ATTEMPTS)
            return
        try:
            async with asyncio.timeout(SECONDS_BETWEEN_HANDSHAKES):
                await self._asked_to_look.wait()
            await asyncio.sleep(SECONDS_BETWEEN_ATTEMPTS)
        except TimeoutError:
            pass

    def _announce(self, contract: Contract | None) -> None:
        if contract == self.contract:
            return
        if contract is None:
            logger.warning("%s %s is not ready", self.tier, self.address)
        else:
            logger.info("%s %s is ready: %s", self.tier, self.address, contract)
        self._set(contract)

    def _set(self, contract: Contract | None) -> None:
        REPLICAS.labels(self.tier).inc((contract is not None) - (self.contract is not None))
        self.contract = contract


class EncoderReplica(Replica):
    tier = "encoder"

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        super().__init__(address, channel)
        self.stub = encoder_pb2_grpc.EncoderServiceStub(channel)

    async def handshake(self) -> Contract:
        info = await self.stub.GetEncoderInfo(
            encoder_pb2.GetEncoderInfoRequest(), timeout=HANDSHAKE_SECONDS
        )
        return Contract(info.model, info.fingerprint, info.width, info.dtype)


class DecoderReplica(Replica):
    """`context_length` is in tokens, as of the last handshake."""

    tier = "decoder"

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        super().__init__(address, channel)
        self.stub = decoder_pb2_grpc.DecoderServiceStub(channel)
        self.context_length = 0

    async def handshake(self) -> Contract:
        info = await self.stub.GetDecoderInfo(
            decoder_pb2.GetDecoderInfoRequest(), timeout=HANDSHAKE_SECONDS
        )
        self.context_length = info.context_length
        return Contract(info.model, info.fingerprint, info.width, info.dtype)


@dataclass(slots=True)
class Tiers:
    """All replicas that this gateway knows of.

    `width` is the embeddings' width that the gateway's own checkpoint gives.
    """

    encoders: Group[EncoderReplica]
    decoders: Group[DecoderReplica]
    width: int
    _broken: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """Starts to watch the replicas; returns once there is a decoder to work with."""
        changed = asyncio.Event()
        for group in (self.encoders, self.decoders):
            group.start(lambda replica: replica.watch(self.width, changed), self._broken)
        while not any(decoder.contract for decoder in self.decoders):
            changed.clear()
            await changed.wait()

    async def failed(self) -> None:
        """Returns once a watch over the replicas has broken, which leaves one as it last was."""
        await self._broken.wait()

    async def stop(self) -> None:
        await asyncio.gather(self.encoders.stop(), self.decoders.stop())

    def contract(self) -> Contract:
        """The contract to serve the next request by. Raises Unavailable without a decoder.

        While a rolling upgrade makes for two, the one that images can be encoded under and that
        has more decoders.
        """
        decoders = Counter(d.contract for d in self.decoders if d.contract is not None)
        if not decoders:
            raise Unavailable("no decoder is ready", RETRY_SECONDS)
        encodable = {encoder.contract for encoder in self.encoders}
        return max(decoders, key=lambda c: (c in encodable, decoders[c], c.fingerprint))

    @property
    def context_length(self) -> int:
        """Tokens that fit on every decoder that has answered. Raises Unavailable where none has."""
        lengths = [decoder.context_length for decoder in self.decoders if decoder.fits]
        if not lengths:
            raise Unavailable("no decoder is ready", RETRY_SECONDS)
        return min(lengths)


R = TypeVar("R", bound=Replica)


def under(replicas: Iterable[R], contract: Contract) -> dict[str, R]:
    """The ready replicas of a contract, by address."""
    return {r.address: r for r in replicas if r.contract == contract}
