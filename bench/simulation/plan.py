"""How many replicas of each tier an arrival rate needs, and the cost of a million images."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.simulation.arrivals import Request, Traffic, constant, trace
from bench.simulation.fleet import Outcome
from bench.simulation.replicas import Limits
from bench.simulation.run import LIMITS, Summary, simulate, summary
from bench.simulation.times import ServiceTimes

# Length of a trial. Its beginning, with cold caches, does not count.
SECONDS = 180.0
WARM_SECONDS = 60.0
MOST = 512
GATEWAY_USE = 0.6
# For each GPU of a fleet: new images at once and in all, to find the best split. The limits never
# refuse a request.
IMAGES_AT_ONCE, IMAGES = 32, 128
UNLIMITED = Limits(permits=1 << 20, queue_patches=1 << 30, max_waiting=1 << 20)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Replicas that meet the objective.

    Gateways need no GPU. Stock vLLM has decoders only. `gpus` counts encoders and decoders.
    """

    gateways: int
    encoders: int
    decoders: int
    gpus: int
    seen: Summary

    def gpu_hours_a_million(self, rate: float) -> float:
        """GPU hours for a million requests with one image each, at the given rate."""
        return self.gpus * 1e6 / rate / 3600


@dataclass(frozen=True, slots=True)
class Planner:
    """Finds fleets; `slo` is the p95 of the time to the first token, in seconds."""

    times: ServiceTimes
    rate: float
    slo: float
    traffic: Traffic
    seed: int = 0
    limits: Limits = LIMITS

    def tiers(self) -> Fleet:
        """The fewest decoders beside plenty of encoders, then the fewest encoders."""
        plenty = math.ceil(self.rate * self.times.tower(self.traffic.patches) * 4) + 1
        decoders = self._fewest(lambda n: self._seen(self._try(plenty, n)))
        encoders = self._fewest(lambda n: self._seen(self._try(n, decoders)))
        outcomes = self._try(encoders, decoders)
        return self._fleet(outcomes, encoders, decoders, encoders + decoders)

    def colocated(self) -> Fleet:
        """An encoder on each decoder's card; while both work, each runs at half speed."""
        cards = self._fewest(lambda n: self._seen(self._try(n, n, colocated=True)))
        return self._fleet(self._try(cards, cards, colocated=True), cards, cards, cards)

    def stock(self) -> Fleet:
        """Servers of stock vLLM that take turns."""
        decoders = self._fewest(lambda n: self._seen(self._try(0, n, stock=True)))
        outcomes = self._try(0, decoders, stock=True)
        return Fleet(0, 0, decoders, decoders, self._seen(outcomes))

    def _fleet(self, outcomes: list[Outcome], encoders: int, decoders: int, gpus: int) -> Fleet:
        return Fleet(self._gateways(outcomes), encoders, decoders, gpus, self._seen(outcomes))

    def _gateways(self, outcomes: Sequence[Outcome]) -> int:
        """Enough gateways to use 60 % of CPU time and of permits."""
        seconds = self.times.gateway_seconds + self.times.gateway_image_seconds
        by_time = self.rate * seconds / GATEWAY_USE
        by_permits = _most_at_once(outcomes) / self.limits.permits / GATEWAY_USE
        return math.ceil(max(by_time, by_permits))

    def _fewest(self, attempt: Callable[[int], Summary]) -> int:
        """Doubles, then bisects: more replicas never make it worse."""
        least, enough = 0, 1
        while not self._keeps(attempt(enough)):
            least, enough = enough, enough * 2
            if enough > MOST:
                raise ValueError(f"{MOST} replicas do not keep the objective")
        while enough - least > 1:
            middle = (least + enough) // 2
            least, enough = (least, middle) if self._keeps(attempt(middle)) else (middle, enough)
        return enough

    def _keeps(self, seen: Summary) -> bool:
        return seen.refused == 0 and seen.ttft_p95 <= self.slo

    def _seen(self, outcomes: Sequence[Outcome]) -> Summary:
        return summary([each for each in outcomes if each.request.at > WARM_SECONDS], SECONDS)

    def _try(
        self, encoders: int, decoders: int, *, stock: bool = False, colocated: bool = False
    ) -> list[Outcome]:
        arrivals = trace(
            constant(self.rate),
            highest=self.rate,
            seconds=SECONDS,
            traffic=self.traffic,
            seed=self.seed,
        )
        return simulate(
            arrivals,
            self.times,
            # More gateways than needed, so that none runs out of permits; `_gateways` counts later.
            gateways=math.ceil(self.rate) + 1,
            encoders=encoders,
            decoders=decoders,
            stock=stock,
            limits=self.limits,
            colocated=colocated,
        )


@dataclass(frozen=True, slots=True)
class Topology:
    """Where encoders and decoders run: on GPUs of their own, or in pairs on one GPU."""

    encoders: int
    decoders: int
    colocated: bool


def topologies(gpus: int, times: ServiceTimes) -> dict[str, Topology]:
    """The topologies on `gpus` GPUs.

    The split is the one that serves the most new images a second; a single GPU has none.
    """
    found = {"co-located": Topology(gpus, gpus, colocated=True)}
    if gpus > 1:
        splits = [Topology(each, gpus - each, colocated=False) for each in range(1, gpus)]
        found["split"] = max(splits, key=lambda split: _images_a_second(split, gpus, times))
    return found


def _images_a_second(topology: Topology, gpus: int, times: ServiceTimes) -> float:
    patches = Traffic().patches
    images = [Request(0, image, patches, 16, 1, image) for image in range(IMAGES * gpus)]
    outcomes = simulate(
        images,
        times,
        gateways=gpus,
        encoders=topology.encoders,
        decoders=topology.decoders,
        limits=UNLIMITED,
        at_once=IMAGES_AT_ONCE * gpus,
    )
    return len(images) / max(each.request.at + (each.last or 0.0) for each in outcomes)


def _most_at_once(outcomes: Sequence[Outcome]) -> int:
    changes = [
        change
        for each in outcomes
        for change in ((each.request.at, 1), (each.request.at + (each.last or 0.0), -1))
    ]
    return max(itertools.accumulate(change for _, change in sorted(changes)), default=0)


def table(planner: Planner, price: float) -> str:
    """The fleets, with the GPU hours of a million requests and, at `price` an hour, their cost."""
    lines = [
        f"{'':16}{'gateways':>9}{'encoders':>9}{'decoders':>9}{'GPUs':>6}{'TTFT p95':>10}"
        f"{'GPU h / million':>17}{'cost':>9}"
    ]
    fleets = {
        "ours, split": planner.tiers(),
        "ours, co-located": planner.colocated(),
        "stock vLLM": planner.stock(),
    }
    for name, fleet in fleets.items():
        hours = fleet.gpu_hours_a_million(planner.rate)
        lines.append(
            f"{name:16}{fleet.gateways or '-':>9}{fleet.encoders or '-':>9}{fleet.decoders:>9}"
            f"{fleet.gpus:>6}{fleet.seen.ttft_p95 * 1e3:>7.0f} ms"
            f"{hours:>17.0f}{hours * price:>9.0f}"
        )
    return "\n".join(lines)
