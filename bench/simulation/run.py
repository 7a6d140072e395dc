"""Runs a simulation from its first request to its last, and summarizes it."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import simpy

from bench.simulation.arrivals import Request
from bench.simulation.fleet import Fleet, Outcome, Policy
from bench.simulation.replicas import Limits
from bench.simulation.times import ServiceTimes

LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of a run. `per_second` counts requests that ended while others still arrived."""

    requests: int
    refused: int
    per_second: float
    ttft_p50: float
    ttft_p95: float


def summary(outcomes: Iterable[Outcome], seconds: float) -> Summary:
    """Summarizes requests that arrived within `seconds`."""
    listed = list(outcomes)
    ended = [each for each in listed if each.last is not None]
    ttft = sorted(each.first for each in listed if each.first is not None)
    in_time = sum(each.request.at + (each.last or 0.0) <= seconds for each in ended)
    return Summary(
        requests=len(listed),
        refused=len(listed) - len(ended),
        per_second=in_time / seconds,
        ttft_p50=statistics.median(ttft) if ttft else float("inf"),
        ttft_p95=ttft[min(int(len(ttft) * 0.95), len(ttft) - 1)] if ttft else float("inf"),
    )


def simulate(
    requests: Iterable[Request],
    times: ServiceTimes,
    *,
    gateways: int = 1,
    encoders: int = 1,
    decoders: int = 1,
    stock: bool = False,
    taken: float = 0.0,
    limits: Limits = LIMITS,
    policy: Policy = "work",
    colocated: bool = False,
    at_once: int = 0,
) -> list[Outcome]:
    """Sends requests to a fleet of constant size; returns their outcomes.

    Requests arrive at their own times; with `at_once`, that many run all the time.
    """
    env = simpy.Environment()
    fleet = Fleet(env, times, limits, stock=stock, taken=taken, policy=policy, colocated=colocated)
    fleet.gateways.begin(gateways)
    fleet.encoders.begin(encoders)
    fleet.decoders.begin(decoders)
    if at_once:
        env.process(fleet.converse(([each] for each in requests), at_once))
    else:
        env.process(fleet.replay(requests))
    env.run()
    return fleet.outcomes
