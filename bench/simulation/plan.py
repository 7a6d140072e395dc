"""How many replicas of each tier an arrival rate needs, and what a million images cost."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from bench.simulation.arrivals import Traffic, constant, trace
from bench.simulation.run import LIMITS, Summary, simulate, summary
from bench.simulation.times import ServiceTimes

# A fleet is tried over this long, of which the beginning, with cold caches, does not count.
SECONDS = 300.0
WARM_SECONDS = 60.0
MOST = 512


@dataclass(frozen=True, slots=True)
class Fleet:
    """Replicas that keep the objective. Gateways have no GPU; stock vLLM has decoders alone."""

    gateways: int
    encoders: int
    decoders: int
    seen: Summary

    @property
    def gpus(self) -> int:
        return self.encoders + self.decoders

    def gpu_hours_a_million(self, rate: float) -> float:
        """For a million requests, an image each, at the rate that it is for."""
        return self.gpus * 1e6 / rate / 3600


@dataclass(frozen=True, slots=True)
class Planner:
    """`slo` is the 95th percentile of the time to the first token, in seconds."""

    times: ServiceTimes
    rate: float
    slo: float
    traffic: Traffic
    seed: int = 0

    def tiers(self) -> Fleet:
        """The fewest decoders with encoders in plenty, then the fewest of those."""
        gateways = self._gateways()
        plenty = math.ceil(self.rate * self.times.tower(self.traffic.patches) * 4) + 1

        def attempt(encoders: int, decoders: int) -> Summary:
            return self._try(gateways=gateways, encoders=encoders, decoders=decoders)

        decoders = self._fewest(lambda n: attempt(plenty, n))
        encoders = self._fewest(lambda n: attempt(n, decoders))
        return Fleet(gateways, encoders, decoders, attempt(encoders, decoders))

    def stock(self) -> Fleet:
        """Servers of stock vLLM that are called in turn."""
        gateways = self._gateways()

        def attempt(decoders: int) -> Summary:
            return self._try(gateways=gateways, encoders=0, decoders=decoders, stock=True)

        decoders = self._fewest(attempt)
        return Fleet(0, 0, decoders, attempt(decoders))

    def _gateways(self) -> int:
        """By their processor time, 60 % of a core each; their permits they never run out of."""
        seconds = self.times.gateway_seconds + self.times.gateway_image_seconds
        return max(1, math.ceil(self.rate * seconds / 0.6))

    def _fewest(self, attempt: Callable[[int], Summary]) -> int:
        """Found by doubling and halving: more replicas never make it worse."""
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

    def _try(self, *, gateways: int, encoders: int, decoders: int, stock: bool = False) -> Summary:
        arrivals = trace(
            constant(self.rate),
            highest=self.rate,
            seconds=SECONDS,
            traffic=self.traffic,
            seed=self.seed,
        )
        outcomes = simulate(
            arrivals,
            self.times,
            gateways=gateways,
            encoders=encoders,
            decoders=decoders,
            stock=stock,
            limits=LIMITS,
        )
        return summary([each for each in outcomes if each.request.at > WARM_SECONDS], SECONDS)


def table(planner: Planner, price: float) -> str:
    """Both fleets, with a million requests' GPU hours and, at a GPU hour's price, their cost."""
    lines = [
        f"{'':14}{'gateways':>9}{'encoders':>9}{'decoders':>9}{'GPUs':>6}{'TTFT p95':>10}"
        f"{'GPU h / million':>17}{'cost':>9}"
    ]
    for name, fleet in (("pixtral-serve", planner.tiers()), ("stock vLLM", planner.stock())):
        hours = fleet.gpu_hours_a_million(planner.rate)
        lines.append(
            f"{name:14}{fleet.gateways or '-':>9}{fleet.encoders or '-':>9}{fleet.decoders:>9}"
            f"{fleet.gpus:>6}{fleet.seen.ttft_p95 * 1e3:>7.0f} ms"
            f"{hours:>17.0f}{hours * price:>9.0f}"
        )
    return "\n".join(lines)
