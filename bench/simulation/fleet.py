"""All replicas of all tiers, and the path of a request through them."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeVar

import simpy

from bench.simulation.arrivals import Request
from bench.simulation.bounded_load import with_bounded_load
from bench.simulation.processor import Processor
from bench.simulation.replicas import Decoder, Encoder, Gateway, Limits, Replica, Work
from bench.simulation.times import ServiceTimes
from pixtral_gateway.upstream.decoder_work import BLOCK_TOKENS, Blocks
from pixtral_gateway.upstream.placement import by_work, rendezvous

R = TypeVar("R", bound=Replica)
MAX_ATTEMPTS = 3
SECONDS_BETWEEN_HANDSHAKES = 5.0

# How gateways choose a decoder. "work" is what they do: by remaining work. "load" is the same, but
# ignores the prefixes that a decoder has computed. "affinity" goes by the beginning of the prompt,
# with bounded load.
Policy = Literal["work", "load", "affinity"]


class Pool(Generic[R]):
    """A tier's replicas: those that are ready, that drain, and that are gone."""

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
        """Starts with `replicas` that are ready at once."""
        self.wanted = replicas
        self.ready = [self._new() for _ in range(replicas)]

    def scale(self, replicas: int) -> None:
        """Starts missing replicas; drains surplus ones, which leave once they are empty."""
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
        """All replicas so far, because a counter's rate includes replicas that are gone."""
        return [*self.ready, *self.draining, *self.gone]


@dataclass(slots=True)
class Outcome:
    """One request. Times are in seconds since its arrival; both are None if it was refused."""

    request: Request
    first: float | None = None
    last: float | None = None
    image: Literal["none", "cached", "encoded"] = "none"
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Starts:
    """Seconds from a scaling decision until a replica is ready, by tier."""

    gateway: float
    encoder: float
    decoder: float


@dataclass(slots=True)
class Fleet:
    """All tiers.

    Attributes:
        env: the simulation's clock and events.
        times: service times.
        limits: bounds of the tiers.
        starts: start times of the tiers.
        stock: whether there are only decoders, which encode images themselves and take turns.
        sticky: whether a repeated image goes to the stock decoder that has seen it.
        taken: shared cores that other processes keep busy.
        policy: how gateways choose decoders.
        colocated: whether encoders share the decoders' cards, the first with the first, and so on.
            While both work, each runs at half speed.
    """

    env: simpy.Environment
    times: ServiceTimes
    limits: Limits = field(default_factory=Limits)
    starts: Starts = field(default_factory=lambda: Starts(0, 0, 0))
    stock: bool = False
    sticky: bool = False
    taken: float = 0.0
    policy: Policy = "work"
    colocated: bool = False
    gateways: Pool[Gateway] = field(init=False)
    encoders: Pool[Encoder] = field(init=False)
    decoders: Pool[Decoder] = field(init=False)
    outcomes: list[Outcome] = field(default_factory=list)
    _host: Processor = field(init=False)
    _hosts: defaultdict[str, simpy.Resource] = field(init=False)
    _stored: set[int] = field(default_factory=set)
    _next_handshake: float = 0.0

    def __post_init__(self) -> None:
        env, times, limits = self.env, self.times, self.limits
        shared = Processor(env, times.shared_cores, self.taken) if times.shared_cores else None
        alone = self._host = shared or Processor(env, None)
        cards: defaultdict[str, Processor] = defaultdict(lambda: Processor(env, 1.0))
        self._hosts = defaultdict(lambda: simpy.Resource(env))

        def card(name: str) -> Processor:
            return cards[name.rpartition("-")[2]] if self.colocated else alone

        self.gateways = Pool(
            env, "gateway", lambda name: Gateway(env, name, times, alone), self.starts.gateway
        )
        self.encoders = Pool(
            env,
            "encoder",
            lambda name: Encoder(env, name, times, alone, limits, card(name)),
            self.starts.encoder,
        )
        self.decoders = Pool(
            env,
            "decoder",
            lambda name: Decoder(
                env,
                name,
                times,
                card(name),
                limits,
                is_shared=bool(shared) or self.colocated,
                encodes=self.stock,
            ),
            self.starts.decoder,
        )

    def replay(self, requests: Iterable[Request]) -> Work:
        for request in requests:
            yield self.env.timeout(request.at - self.env.now)
            outcome = Outcome(request)
            self.outcomes.append(outcome)
            self.env.process(self._serve(request, outcome))
            self._shake_hands()

    def converse(self, sessions: Iterable[Iterable[Request]], at_once: int) -> Work:
        """Keeps `at_once` sessions running; each sends a request when its last one has ended."""
        room = simpy.Resource(self.env, at_once)

        def hold(turn: simpy.resources.resource.Request, session: Iterable[Request]) -> Work:
            for request in session:
                outcome = Outcome(replace(request, at=self.env.now))
                self.outcomes.append(outcome)
                self._shake_hands()
                yield from self._serve(outcome.request, outcome)
            room.release(turn)

        for session in sessions:
            turn = room.request()
            yield turn
            self.env.process(hold(turn, session))

    def _shake_hands(self) -> None:
        if self.env.now < self._next_handshake:
            return
        self._next_handshake = self.env.now + SECONDS_BETWEEN_HANDSHAKES
        for gateway in self.gateways.ready:
            for decoder in self.decoders.ready:
                _report(gateway, decoder)

    def _serve(self, request: Request, outcome: Outcome) -> Work:
        gateway = self._gateway(request)
        if gateway.in_flight >= self.limits.permits:
            return
        gateway.in_flight += 1
        yield from gateway.prepare(request)
        if request.image is not None and not self.stock:
            yield from self._find(request.image, request.patches, outcome)
        decoder = self._decoder(gateway, request, is_known=outcome.image == "cached")
        if decoder is not None and (outcome.image != "none" or request.image is None or self.stock):
            decoder.in_flight += 1
            if self.stock and request.image is not None:
                with self._hosts[decoder.address].request() as turn:
                    yield turn
                    yield self._host.work(self.times.stock_host(request.patches))
            yield from self._generate(gateway, decoder, outcome)
            decoder.in_flight -= 1
        gateway.in_flight -= 1

    def _gateway(self, request: Request) -> Gateway:
        if not request.becomes:
            return self.gateways.in_turn()
        # A client keeps its gateway as long as its connection lives.
        return self.gateways.ready[(request.image or 0) % len(self.gateways.ready)]

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

    def _decoder(self, gateway: Gateway, request: Request, *, is_known: bool) -> Decoder | None:
        """Chooses like the gateway. Stock servers take turns; `sticky` ties an image to one."""
        ready = {decoder.address: decoder for decoder in self.decoders.ready}
        if self.stock:
            chosen = self.decoders.in_turn()
            if self.sticky and request.image is not None:
                chosen = ready[rendezvous(b"%d" % request.image, ready)[0]]
            return chosen if chosen.has_room else None
        # The image, or the text if there is none.
        head = request.parts[0][0] if self.policy != "load" else f"request {request.number}"
        preference = rendezvous(head.encode(), ready)
        for _ in range(min(MAX_ATTEMPTS, len(preference))):
            address = self._choose(gateway, request, preference, is_known=is_known)
            if ready[address].has_room:
                return ready[address]
            preference.remove(address)
        return None

    def _choose(
        self, gateway: Gateway, request: Request, preference: list[str], *, is_known: bool
    ) -> str:
        if self.policy == "affinity":
            load = {address: gateway.works[address].answers for address in preference}
            return with_bounded_load(preference, load)
        return by_work(
            preference,
            gateway.works,
            self._blocks(request),
            request.prompt_tokens,
            is_known=is_known,
        )

    def _blocks(self, request: Request) -> Blocks:
        if self.policy == "load":
            return ()
        end, blocks = 0, list[int]()
        for name, tokens in request.parts:
            end += tokens
            while (len(blocks) + 1) * BLOCK_TOKENS <= end:
                blocks.append(hash((name, len(blocks))))
        return blocks

    def _generate(self, gateway: Gateway, decoder: Decoder, outcome: Outcome) -> Work:
        request, at = outcome.request, outcome.request.at
        work, blocks = gateway.works[decoder.address], self._blocks(request)
        new = work.new_tokens(blocks, request.prompt_tokens)
        with (
            work.sent(blocks, request.prompt_tokens, 1) as prompt,
            decoder.work.prompt(new) as computed,
        ):
            sequence = decoder.generate(request)
            yield sequence.first
            outcome.first = self.env.now - at
            outcome.cached_tokens = sequence.cached
            computed(request.prompt_tokens - sequence.cached)
            prompt.begin(sequence.cached)
            _report(gateway, decoder)
            yield sequence.done
            outcome.last = self.env.now - at


def _report(gateway: Gateway, decoder: Decoder) -> None:
    gateway.works[decoder.address].report(
        decoder.work.tokens, decoder.in_flight, decoder.work.tokens_per_second
    )
