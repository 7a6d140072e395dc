"""All replicas of all tiers, and a request's way through them."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import simpy

from bench.simulation.arrivals import Request
from bench.simulation.processor import Processor
from bench.simulation.replicas import Decoder, Encoder, Gateway, Limits, Replica, Sequence, Work
from bench.simulation.times import ServiceTimes
from pixtral_gateway.upstream.placement import rendezvous, with_bounded_load

R = TypeVar("R", bound=Replica)
MAX_ATTEMPTS = 3


class Pool(Generic[R]):
    """A tier's replicas: those that are ready, those that drain, and those that have gone."""

    def __init__(
        self, env: simpy.Environment, name: str, make: Callable[[str], R], start_seconds: float
    ) -> None:
        self._env = env
        self._name = name
        self._make = make
        self._start_seconds = start_seconds
        self._numbers = itertools.count(1)
        self._turn = 0
        self.ready: list[R] = []
        self.draining: list[R] = []
        self.gone: list[R] = []
        self.wanted = 0

    def begin(self, replicas: int) -> None:
        """So many are there from the beginning."""
        self.wanted = replicas
        self.ready = [self._new() for _ in range(replicas)]

    def scale(self, replicas: int) -> None:
        """More start; those that are too many take nothing new and go when they are empty."""
        started = self.wanted
        self.wanted = replicas
        for _ in range(replicas - started):
            self._env.process(self._start())
        while len(self.ready) > replicas:
            self.draining.append(self.ready.pop())
            self._env.process(self._drain(self.draining[-1]))

    def _new(self) -> R:
        return self._make(f"{self._name}-{next(self._numbers)}")

    def _start(self) -> Work:
        yield self._env.timeout(self._start_seconds)
        if len(self.ready) < self.wanted:
            self.ready.append(self._new())

    def _drain(self, replica: R) -> Work:
        while replica.in_flight:
            yield self._env.timeout(1.0)
        self.draining.remove(replica)
        self.gone.append(replica)

    def in_turn(self) -> R:
        self._turn += 1
        return self.ready[self._turn % len(self.ready)]

    @property
    def ever(self) -> list[R]:
        """For counters, of whose rates a replica that has gone takes nothing away."""
        return [*self.ready, *self.draining, *self.gone]


@dataclass(slots=True)
class Outcome:
    """The times of one request, in seconds since its arrival; refused where `first` and `last` are
    None."""

    request: Request
    first: float | None = None
    last: float | None = None
    image: Literal["none", "cached", "encoded"] = "none"


@dataclass(frozen=True, slots=True)
class Starts:
    """Seconds from a decision to a replica that is ready."""

    gateway: float
    encoder: float
    decoder: float


@dataclass(slots=True)
class Fleet:
    """`stock` is of decoders alone, which encode themselves and are called in turn; `taken` of
    the cores that all share, others keep busy."""

    env: simpy.Environment
    times: ServiceTimes
    limits: Limits = field(default_factory=Limits)
    starts: Starts = field(default_factory=lambda: Starts(0, 0, 0))
    stock: bool = False
    taken: float = 0.0
    gateways: Pool[Gateway] = field(init=False)
    encoders: Pool[Encoder] = field(init=False)
    decoders: Pool[Decoder] = field(init=False)
    outcomes: list[Outcome] = field(default_factory=list)
    _stored: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        env, times, limits = self.env, self.times, self.limits
        shared = Processor(env, times.shared_cores, self.taken) if times.shared_cores else None
        alone = shared or Processor(env, None)
        self.gateways = Pool(
            env, "gateway", lambda name: Gateway(env, name, times, alone), self.starts.gateway
        )
        self.encoders = Pool(
            env,
            "encoder",
            lambda name: Encoder(env, name, times, alone, limits),
            self.starts.encoder,
        )
        self.decoders = Pool(
            env,
            "decoder",
            lambda name: Decoder(
                env, name, times, alone, limits, is_shared=bool(shared), encodes=self.stock
            ),
            self.starts.decoder,
        )

    def replay(self, requests: Iterable[Request]) -> Work:
        for request in requests:
            yield self.env.timeout(request.at - self.env.now)
            outcome = Outcome(request)
            self.outcomes.append(outcome)
            self.env.process(self._serve(request, outcome))

    def _serve(self, request: Request, outcome: Outcome) -> Work:
        gateway = self.gateways.in_turn()
        if gateway.in_flight >= self.limits.permits:
            return
        gateway.in_flight += 1
        yield from gateway.prepare(request)
        if request.image is not None and not self.stock:
            yield from self._find(request.image, request.patches, outcome)
        decoder = self._decoder(request)
        if decoder is not None and (outcome.image != "none" or request.image is None or self.stock):
            decoder.in_flight += 1
            sequence = decoder.generate(request)
            yield from self._relay(sequence, request, outcome)
            decoder.in_flight -= 1
        gateway.in_flight -= 1

    def _find(self, image: int, patches: int, outcome: Outcome) -> Work:
        if image in self._stored:
            outcome.image = "cached"
            return
        ready = {encoder.address: encoder for encoder in self.encoders.ready}
        encoder = ready[rendezvous(b"%d" % image, ready)[0]]
        if not encoder.has_room(image, patches):
            return
        encoder.in_flight += 1
        yield from encoder.encode(image, patches)
        encoder.in_flight -= 1
        self._stored.add(image)
        outcome.image = "encoded"

    def _decoder(self, request: Request) -> Decoder | None:
        """As the gateway chooses, by what a prompt begins with; stock servers take turns."""
        ready = {decoder.address: decoder for decoder in self.decoders.ready}
        if self.stock:
            chosen = self.decoders.in_turn()
            return chosen if chosen.has_room else None
        head = f"image {request.image}" if request.image is not None else f"text {request.number}"
        preference = rendezvous(head.encode(), ready)
        load = {address: decoder.in_flight for address, decoder in ready.items()}
        for _ in range(min(MAX_ATTEMPTS, len(preference))):
            address = with_bounded_load(preference, load)
            if ready[address].has_room:
                return ready[address]
            preference.remove(address)
        return None

    def _relay(self, sequence: Sequence, request: Request, outcome: Outcome) -> Work:
        yield sequence.first
        outcome.first = self.env.now - request.at
        yield sequence.done
        outcome.last = self.env.now - request.at
