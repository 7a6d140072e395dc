"""Keeps the state of one process of another tier: its readiness, its model and its requests."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import grpc

from pixtral.internal.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc
from pixtral_gateway.metrics import REPLICAS
from pixtral_gateway.upstream.decoder_work import DecoderWork
from pixtral_gateway.upstream.ejection import Record, eject

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 2.0
# An absent replica gets frequent handshakes, so that it is found soon after it starts.
SECONDS_BETWEEN_HANDSHAKES = 5.0
SECONDS_BETWEEN_ATTEMPTS = 0.5
# A process that starts may load for minutes. This many failures, which take five minutes, are a
# fault.
STARTING_ATTEMPTS = 600
# A replica too busy for a handshake is not gone: only this many failures in a row mean that it
# hangs.
SLOW_HANDSHAKES = 3
SECONDS_BETWEEN_LOOKS = 1.0

# The codes with which a call ends when its process has gone or shuts down.
GONE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})

# The codes with which a call ends when its process failed to do the work.
FAILED = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})

RETRY_SECONDS = 1.0


class Cancellable(Protocol):
    def cancel(self) -> bool: ...


@dataclass(slots=True, eq=False)
class Work:
    """A running call to a replica.

    Attributes:
        is_awaited: whether the gateway waits for the call's next response; False while the client
            has not read the last response.
    """

    call: Cancellable
    is_awaited: bool = True


def is_cancelled() -> bool:
    """Whether a CancelledError ends this task, and not only a call."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


@dataclass(frozen=True, slots=True)
class Contract:
    """The facts on which an encoder and a decoder must agree to work together."""

    model: str
    fingerprint: str
    width: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.model}, fingerprint {self.fingerprint}, {self.width} wide, {self.dtype}"


class Replica(ABC):
    """One process of another tier, at `address`.

    Attributes:
        announced: the contract of its last handshake; None if the handshake failed or the replica
            serves another model.
        contract: the same as `announced`, but None while the gateway does not use the replica.
        fits: whether it serves this gateway's model, by its last announcement.
        outstanding: answers to this gateway's requests that have not ended.
        responses: a count that grows when the replica responds to any gateway.
        record: outcomes of its calls.
    """

    tier: str

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.announced: Contract | None = None
        self.contract: Contract | None = None
        self.fits = False
        self.outstanding = 0
        self.responses = 0
        self.record = Record()
        self._under_way: set[Work] = set()
        self._told = 0
        self._channel = channel
        self._asked_to_look = asyncio.Event()

    @abstractmethod
    async def handshake(self) -> Contract:
        """Asks the process for its facts. Raises AioRpcError."""

    @contextmanager
    def serving(self, call: Cancellable, answers: int = 1) -> Iterator[Work]:
        """The replica works at `call` until the block ends.

        If the replica hangs, the call is cancelled and the task is not, so that `is_cancelled` is
        false.
        """
        work = Work(call)
        self._under_way.add(work)
        self.outstanding += answers
        try:
            yield work
        finally:
            self.outstanding -= answers
            self._under_way.remove(work)
            call.cancel()

    def lost(self) -> None:
        """Stops using the replica until its next handshake, because a call found that its process
        is gone."""
        self._announce(None)
        self._asked_to_look.set()

    def leave_out(self) -> None:
        """Stops using the replica until its record allows it."""
        self._set(None)

    async def watch(
        self,
        width: int,
        changed: asyncio.Event,
        peers: "Iterable[Replica]",
        stall_seconds: float,
    ) -> None:
        """Keeps `contract` up to date until cancelled. Sets `changed` after each handshake that
        succeeds.

        A replica whose embeddings are not `width` wide serves another model, and is never used. A
        replica that sends nothing for `stall_seconds` while it owes answers is ejected, if enough
        of its `peers` are in use. The calls to a replica that hangs are cancelled.
        """
        async with asyncio.TaskGroup() as both:
            both.create_task(self._shake_hands(width, changed))
            both.create_task(self._listen(peers, stall_seconds))

    async def _listen(self, peers: "Iterable[Replica]", stall_seconds: float) -> None:
        # Silence is counted in looks and not by the clock, because a gateway that stood still
        # itself received nothing, either. Several calls count together, because a call's own
        # deadline may be shorter than the time that shows a hang.
        quiet, responses = 0.0, self.responses
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            if self.responses != responses or self.contract is None:
                quiet, responses = 0.0, self.responses
            elif any(work.is_awaited for work in self._under_way):
                quiet += SECONDS_BETWEEN_LOOKS
            else:
                quiet = max(quiet - SECONDS_BETWEEN_LOOKS, 0.0)
            if quiet >= stall_seconds and eject(self, peers, "silence"):
                quiet = 0.0
                self._give_up()

    async def _shake_hands(self, width: int, changed: asyncio.Event) -> None:
        slow, failures, has_answered, responses = 0, 0, False, 0
        while True:
            try:
                contract = await self.handshake()
            except grpc.aio.AioRpcError as error:
                failures += 1
                self._log_silence(error.code(), failures, has_answered)
                is_slow = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                responses = self.responses if not slow else responses
                slow = slow + 1 if is_slow else SLOW_HANDSHAKES
                if slow >= SLOW_HANDSHAKES:
                    self._announce(None)
                    if is_slow and self.responses == responses:
                        self._give_up()
            else:
                slow, failures, has_answered = 0, 0, True
                self.fits = contract.width == width
                if not self.fits:
                    logger.warning("%s %s serves another model", self.tier, self.address)
                self._announce(contract if self.fits else None)
                changed.set()
            await self._pause(is_urgent=slow > 0)

    def _log_silence(self, code: grpc.StatusCode, failures: int, has_answered: bool) -> None:
        """Logs one line when a replica stops answering, and one more if a replica never starts
        to."""
        what = (self.tier, self.address, code.name)
        if failures == 1 and not has_answered:
            logger.info("%s %s does not answer yet: %s", *what)
        elif failures == (1 if has_answered else STARTING_ATTEMPTS):
            logger.warning("%s %s does not answer: %s", *what)

    def retire(self) -> None:
        """Sends the replica no new calls; running calls continue."""
        self._announce(None)

    async def close(self) -> None:
        self._set(None)
        await self._channel.close()

    def _give_up(self) -> None:
        for work in tuple(self._under_way):
            work.call.cancel()

    def _hear(self, responses: int) -> None:
        """Takes the replica's own count of responses, from a handshake. The count shows that the
        replica works, even if it answers only other gateways while this one's requests wait in its
        queue."""
        if responses != self._told:
            self._told = responses
            self.responses += 1

    async def _pause(self, *, is_urgent: bool) -> None:
        self._asked_to_look.clear()
        if self.contract is None or is_urgent:
            await asyncio.sleep(SECONDS_BETWEEN_ATTEMPTS)
            return
        try:
            async with asyncio.timeout(SECONDS_BETWEEN_HANDSHAKES):
                await self._asked_to_look.wait()
            await asyncio.sleep(SECONDS_BETWEEN_ATTEMPTS)
        except TimeoutError:
            pass

    def _announce(self, contract: Contract | None) -> None:
        self.announced = contract
        if self.record.is_ejected:
            contract = None
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
        self._hear(info.responses)
        return Contract(info.model, info.fingerprint, info.width, info.dtype)


class DecoderReplica(Replica):
    """`context_length` is in tokens. `capacity` is the number of answers that run and wait there
    before it refuses others, and `adapters` are names, both from the last handshake. `work` is what
    the decoder has left to compute."""

    tier = "decoder"

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        super().__init__(address, channel)
        self.stub = decoder_pb2_grpc.DecoderServiceStub(channel)
        self.context_length = 0
        self.capacity = 0
        self.adapters: frozenset[str] = frozenset()
        self.work = DecoderWork()

    def lost(self) -> None:
        super().lost()
        self.work.forget()

    def hear_load(self, load: decoder_pb2.DecoderLoad) -> None:
        self.work.report(load.new_tokens, load.answers, load.tokens_per_second)

    def has(self, adapter: str) -> bool:
        """Whether the decoder has an adapter; the empty name is no adapter."""
        return not adapter or adapter in self.adapters

    async def handshake(self) -> Contract:
        info = await self.stub.GetDecoderInfo(
            decoder_pb2.GetDecoderInfoRequest(), timeout=HANDSHAKE_SECONDS
        )
        self.context_length = info.context_length
        # A decoder of an older version has no such field.
        self.capacity = info.capacity or 2 * info.max_running
        self.adapters = frozenset(info.adapters)
        self._hear(info.responses)
        # A decoder of an older version does not report its load.
        if info.HasField("load"):
            self.hear_load(info.load)
        return Contract(info.model, info.fingerprint, info.width, info.dtype)
