"""Compares placement by work, by load alone and by affinity alone, under several loads."""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from bench.simulation.arrivals import Request
from bench.simulation.fleet import Outcome, Policy
from bench.simulation.replicas import Limits
from bench.simulation.run import simulate
from bench.simulation.times import ServiceTimes

POLICIES: tuple[Policy, ...] = ("affinity", "load", "work")
GATEWAYS = 4
# Requests of a run for each decoder. The first COLD of them meet cold caches and do not count. They
# arrive SLOWER times as slowly, because a fleet that starts under full load has a backlog.
REQUESTS, COLD, SLOWER = 450, 150, 4.0
# Share of the highest rate that hashing with bounded load can serve.
LOAD = 0.8
# The rate that orders the turns of different chats when the fleet is full.
ORDER_RATE = 20.0
DECODERS_AN_ENCODER = 15
# Concurrent requests for each decoder that saturate it. The limits never refuse a request.
SATURATED = 64
LIMITS = Limits(permits=1 << 20, queue_patches=1 << 30, max_running=256, max_waiting=1 << 20)
# ServeGen's coefficient of variation of the gaps between requests.
VARIATION = 2.2
IMAGES_A_DECODER = 100
TURNS = 6
THINKING_SECONDS = 10.0
PATCHES = 4096
TEXT_TOKENS = 64

Gaps = Callable[[random.Random], float]
Trace = Callable[[int, float, Gaps, random.Random], Iterator[Request]]


def poisson(rng: random.Random) -> float:
    """The gap between two arrivals, 1 on average."""
    return rng.expovariate(1.0)


def bursty(rng: random.Random) -> float:
    """The same with a Gamma distribution, whose coefficient of variation is VARIATION."""
    shape = 1 / VARIATION**2
    return rng.gammavariate(shape, 1 / shape)


def new_images(decoders: int, rate: float, gaps: Gaps, rng: random.Random) -> Iterator[Request]:
    """A new image in each request; answers have 100 tokens on average."""
    at = 0.0
    for number in itertools.count(1):
        at += gaps(rng) / rate
        yield Request(at, number, PATCHES, TEXT_TOKENS, _length(rng, 100), number)


def zipf(decoders: int, rate: float, gaps: Gaps, rng: random.Random) -> Iterator[Request]:
    """One of 100 images for each decoder, by Zipf's law; answers have 100 tokens on average."""
    images = range(IMAGES_A_DECODER * decoders)
    weights = list(itertools.accumulate(1 / (each + 1) for each in images))
    at = 0.0
    for number in itertools.count(1):
        at += gaps(rng) / rate
        (image,) = rng.choices(images, cum_weights=weights)
        yield Request(at, image, PATCHES, TEXT_TOKENS, _length(rng, 100), number)


def chats(decoders: int, rate: float, gaps: Gaps, rng: random.Random) -> Iterator[Request]:
    """Six questions on each new image, ten seconds apart; answers have 48 tokens on average."""
    turns: list[Request] = []
    at = 0.0
    for chat in itertools.count(1):
        at += gaps(rng) / rate * TURNS
        ready = sorted((turn for turn in turns if turn.at < at), key=lambda turn: turn.at)
        turns = [turn for turn in turns if turn.at >= at]
        yield from ready
        turn_at = at
        before: tuple[tuple[str, int], ...] = ()
        for turn in range(TURNS):
            text, output = rng.randint(20, 60), _length(rng, 48)
            name = f"turn {chat}.{turn}"
            number = chat * TURNS + turn
            turns.append(Request(turn_at, chat, PATCHES, text, output, number, before, name))
            before = (*before, (name, text + output))
            turn_at += 2.0 + rng.expovariate(1 / (THINKING_SECONDS - 2.0))


TRACES: dict[str, Trace] = {"new images": new_images, "Zipf": zipf, "chats": chats}
ARRIVALS: dict[str, Gaps] = {"Poisson": poisson, "bursts": bursty}


@dataclass(frozen=True, slots=True)
class Seen:
    """Percentiles of the first token in seconds, and the share of prompt tokens from a cache."""

    p50: float
    p90: float
    p99: float
    cached: float


@dataclass(frozen=True, slots=True)
class Compared:
    """One load: its requests a second, and the results of each policy."""

    decoders: int
    trace: str
    arrivals: str
    rate: float
    seen: dict[Policy, Seen]


@dataclass(frozen=True, slots=True)
class Bench:
    """Fleets of one kind; `colocated` ones have an encoder on each decoder's card."""

    times: ServiceTimes
    seed: int = 1
    gateways: int = GATEWAYS
    colocated: bool = False

    def compare(self, decoders: Sequence[int], traces: Sequence[str]) -> Iterator[Compared]:
        """Runs each load at LOAD times the rate that hashing with bounded load can serve."""
        for count, trace in itertools.product(decoders, traces):
            rate = LOAD * self.capacity(count, trace)
            for arrivals in ARRIVALS:
                seen = {
                    policy: _seen(self._run(count, trace, rate, arrivals, policy), count)
                    for policy in POLICIES
                }
                yield Compared(count, trace, arrivals, rate, seen)

    def capacity(self, decoders: int, trace: str) -> float:
        """Requests a second that hashing with bounded load serves when saturated."""
        rate, at_once = ORDER_RATE * decoders, SATURATED * decoders
        outcomes = self._run(decoders, trace, rate, "Poisson", "affinity", at_once)
        ends = sorted(each.request.at + each.last for each in outcomes if each.last is not None)
        # The fleet is no longer full while the last requests end.
        counted = ends[COLD * decoders : -at_once]
        return (len(counted) - 1) / (counted[-1] - counted[0])

    def _run(
        self,
        decoders: int,
        trace: str,
        rate: float,
        arrivals: str,
        policy: Policy,
        at_once: int = 0,
    ) -> list[Outcome]:
        # Every policy gets the same arrivals.
        made = TRACES[trace](decoders, rate, ARRIVALS[arrivals], random.Random(self.seed))
        return simulate(
            _warmed(itertools.islice(made, REQUESTS * decoders), COLD * decoders),
            self.times,
            gateways=self.gateways,
            encoders=decoders if self.colocated else math.ceil(decoders / DECODERS_AN_ENCODER),
            decoders=decoders,
            limits=LIMITS,
            policy=policy,
            colocated=self.colocated,
            at_once=at_once,
        )


def _warmed(requests: Iterable[Request], cold: int) -> Iterator[Request]:
    """The same requests, with longer gaps between the first `cold`."""
    at = before = 0.0
    for number, each in enumerate(requests):
        at += (each.at - before) * (SLOWER if number < cold else 1.0)
        before = each.at
        yield replace(each, at=at)


def _seen(outcomes: Sequence[Outcome], decoders: int) -> Seen:
    warm = outcomes[COLD * decoders :]
    first = sorted(each.first for each in warm if each.first is not None)
    if len(first) < len(warm):
        raise ValueError("a request was refused")
    tokens = sum(each.request.prompt_tokens for each in warm)
    p50, p90, p99 = (first[int(len(first) * share)] for share in (0.5, 0.9, 0.99))
    return Seen(p50, p90, p99, sum(each.cached_tokens for each in warm) / tokens)


def _length(rng: random.Random, mean: int) -> int:
    return 1 + int(rng.expovariate(1 / (mean - 0.5)))


def table(compared: Iterable[Compared]) -> Iterator[str]:
    """A row of Markdown for each load.

    A cell has the seconds to the first token at p50 / p90 / p99, and the share of prompt tokens
    from a cache.
    """
    yield (
        "| load | decoders | requests/s | affinity alone (bounded load) | load alone | work | "
        "p90, work to affinity |"
    )
    yield "|---|---|---|---|---|---|---|"
    for each in compared:
        cells = " | ".join(_cell(each.seen[policy]) for policy in POLICIES)
        ratio = each.seen["work"].p90 / each.seen["affinity"].p90
        ratio_cell = f"**{ratio:.2f}**" if ratio > 1 else f"{ratio:.2f}"
        yield (
            f"| {each.trace}, {each.arrivals} | {each.decoders} | {each.rate:.1f} | {cells} | "
            f"{ratio_cell} |"
        )


def _cell(seen: Seen) -> str:
    times = " / ".join(f"{each:.2f}" for each in (seen.p50, seen.p90, seen.p99))
    return f"{times}; {seen.cached:.0%}"
