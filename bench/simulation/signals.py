"""The signals that scale each tier: the project's own, and CPU use.

Scrapes come every 15 seconds, and rates follow the queries in `deploy/k8s/components/scaling`. The
thresholds are read from those manifests.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.simulation.autoscaler import Autoscaler, Behavior, Metric
from bench.simulation.fleet import Fleet, Pool
from bench.simulation.replicas import Work

SCRAPE_SECONDS = 15.0
MANIFEST = Path(__file__).resolve().parents[2] / "deploy/k8s/components/scaling/scaled-objects.yaml"


@dataclass(frozen=True, slots=True)
class Tier:
    """The numbers of a ScaledObject; `thresholds` has the order of its triggers."""

    behavior: Behavior
    thresholds: tuple[float, ...]


def from_manifest(path: Path = MANIFEST) -> dict[str, Tier]:
    documents = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    return {document["metadata"]["name"]: _tier(document["spec"]) for document in documents}


def _tier(spec: dict[str, Any]) -> Tier:
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    (up,), (down,) = (behavior[way]["policies"] for way in ("scaleUp", "scaleDown"))
    return Tier(
        Behavior(
            lowest=spec["minReplicaCount"],
            highest=spec["maxReplicaCount"],
            up_percent=up["value"],
            up_period=up["periodSeconds"],
            up_window=behavior["scaleUp"]["stabilizationWindowSeconds"],
            down_pods=down["value"],
            down_period=down["periodSeconds"],
            down_window=behavior["scaleDown"]["stabilizationWindowSeconds"],
        ),
        tuple(float(trigger["metadata"]["threshold"]) for trigger in spec["triggers"]),
    )


@dataclass(frozen=True, slots=True)
class Host:
    """CPU use of pods whose work is on a GPU. These are assumptions, not measurements.

    Attributes:
        gateway_requests: cores that a gateway's pod requests in `deploy/k8s/base`.
        encoder_requests: cores that an encoder's pod requests.
        decoder_requests: cores that a decoder's pod requests.
        busy_cores: cores that a process keeps busy while its GPU works, launching and waiting.
        target: share of the requested cores that a plain HPA keeps in use.
    """

    gateway_requests: float = 1.0
    encoder_requests: float = 4.0
    decoder_requests: float = 4.0
    busy_cores: float = 1.0
    target: float = 0.7


@dataclass(slots=True)
class Scrapes:
    """The counters at the last scrapes, the newest last."""

    fleet: Fleet
    taken: deque[tuple[float, dict[str, float]]] = field(default_factory=lambda: deque(maxlen=21))

    def run(self) -> Work:
        while True:
            self.taken.append((self.fleet.env.now, self._counters()))
            yield self.fleet.env.timeout(SCRAPE_SECONDS)

    def last(self, name: str) -> float:
        return self.taken[-1][1][name]

    def rate(self, name: str, seconds: float) -> float:
        now, newest = self.taken[-1]
        within = [(at, counters) for at, counters in self.taken if at >= now - seconds]
        at, oldest = within[0]
        return (newest[name] - oldest[name]) / (now - at) if now > at else 0.0

    def _counters(self) -> dict[str, float]:
        gateways, encoders, decoders = (
            self.fleet.gateways.ever,
            self.fleet.encoders.ever,
            self.fleet.decoders.ever,
        )
        return {
            "permits": sum(each.in_flight for each in gateways),
            "queued_patches": sum(each.queued_patches for each in encoders),
            "encoded_patches": sum(each.encoded_patches for each in encoders),
            "tower_seconds": sum(each.tower_seconds for each in encoders),
            "requests": sum(len(each.running) + len(each.waiting) for each in decoders),
            "kv_use": sum(each.kv_use for each in decoders),
            "gateway_host": sum(each.host_seconds for each in gateways),
            "encoder_host": sum(each.host_seconds for each in encoders),
            "engine_seconds": sum(each.busy_seconds for each in decoders),
        }


Signals = dict[str, Sequence[Metric]]


def own(scrapes: Scrapes, tiers: dict[str, Tier]) -> Signals:
    """The signals of the queries in `deploy/k8s/components/scaling`."""

    def backlog() -> float:
        speed = scrapes.rate("encoded_patches", 300) / (scrapes.rate("tower_seconds", 300) or 1)
        return scrapes.last("queued_patches") / speed if speed else 0.0

    queries: dict[str, dict[str, Callable[[], float]]] = {
        "gateway": {"permits": lambda: scrapes.last("permits")},
        "encoder": {
            "backlog": backlog,
            "busy": lambda: scrapes.rate("tower_seconds", 120),
        },
        "decoder": {
            "requests": lambda: scrapes.last("requests"),
            "kv": lambda: scrapes.last("kv_use"),
        },
    }
    return {
        tier: [
            Metric(name, total, target)
            for (name, total), target in zip(asked.items(), tiers[tier].thresholds, strict=True)
        ]
        for tier, asked in queries.items()
    }


def by_cpu(scrapes: Scrapes, host: Host) -> Signals:
    """The signals of a plain HorizontalPodAutoscaler, which looks at the use of requested cores."""

    def gateway() -> float:
        return scrapes.rate("gateway_host", 60) / host.gateway_requests

    def encoder() -> float:
        busy = host.busy_cores * scrapes.rate("tower_seconds", 60)
        return (scrapes.rate("encoder_host", 60) + busy) / host.encoder_requests

    def decoder() -> float:
        return host.busy_cores * scrapes.rate("engine_seconds", 60) / host.decoder_requests

    totals = {"gateway": gateway, "encoder": encoder, "decoder": decoder}
    return {tier: [Metric("cpu", total, host.target)] for tier, total in totals.items()}


def autoscale(fleet: Fleet, signals: Signals, tiers: dict[str, Tier]) -> None:
    """Starts the autoscalers of all tiers, each at its least number of replicas."""
    pools: dict[str, Pool[Any]] = {
        "gateway": fleet.gateways,
        "encoder": fleet.encoders,
        "decoder": fleet.decoders,
    }
    for tier, pool in pools.items():
        behavior = tiers[tier].behavior
        pool.begin(behavior.lowest)
        scaler = Autoscaler(fleet.env, signals[tier], behavior, behavior.lowest, pool.scale)
        fleet.env.process(scaler.run())
