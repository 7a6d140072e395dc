"""The part of Kubernetes' HorizontalPodAutoscaler that chooses the number of replicas.

It follows the documentation and `pkg/controller/podautoscaler`: tolerance of the ratio, ceilings,
the largest of several metrics, stabilization windows, and policies that limit the pace.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import simpy

from bench.simulation.replicas import Work

TOLERANCE = 0.1
SYNC_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric whose `total` divided by the replicas should be `target` (KEDA's `AverageValue`)."""

    name: str
    total: Callable[[], float]
    target: float


@dataclass(frozen=True, slots=True)
class Behavior:
    """The limits of an autoscaler, with one policy each way.

    It adds at most `up_percent` in `up_period` seconds, and removes at most `down_pods` in
    `down_period` seconds.
    """

    lowest: int = 2
    highest: int = 32
    up_percent: float = 100.0
    up_period: float = 60.0
    up_window: float = 0.0
    down_pods: int = 1
    down_period: float = 300.0
    down_window: float = 600.0


def proposed(replicas: int, metrics: Sequence[Metric]) -> int:
    """The most replicas that any of the metrics asks for."""
    return max(_by_metric(replicas, metric) for metric in metrics)


def _by_metric(replicas: int, metric: Metric) -> int:
    total = metric.total()
    if abs(total / (metric.target * replicas) - 1) <= TOLERANCE:
        return replicas
    return math.ceil(total / metric.target)


@dataclass(slots=True)
class Autoscaler:
    """Decides at every sync; calls `scale` when the number of replicas changes."""

    env: simpy.Environment
    metrics: Sequence[Metric]
    behavior: Behavior
    replicas: int
    scale: Callable[[int], None]
    _recommended: deque[tuple[float, int]] = field(default_factory=deque)
    _changes: deque[tuple[float, int]] = field(default_factory=deque)

    def run(self) -> Work:
        while True:
            yield self.env.timeout(SYNC_SECONDS)
            wanted = self.decide(proposed(self.replicas, self.metrics))
            if wanted != self.replicas:
                self._changes.append((self.env.now, wanted - self.replicas))
                self.replicas = wanted
                self.scale(wanted)

    def decide(self, recommendation: int) -> int:
        """The new number of replicas after a recommendation."""
        behavior = self.behavior
        bounded = min(max(self._stable(recommendation), behavior.lowest), behavior.highest)
        if bounded > self.replicas:
            before = self.replicas - self._changed_within(behavior.up_period)
            most = max(math.ceil(before * (1 + behavior.up_percent / 100)), self.replicas)
            return min(bounded, most)
        if bounded < self.replicas:
            before = self.replicas - self._changed_within(behavior.down_period)
            return max(bounded, min(before - behavior.down_pods, self.replicas))
        return bounded

    def _stable(self, recommendation: int) -> int:
        """The current replicas, moved only as far as all recent recommendations agree."""
        now = self.env.now
        self._recommended.append((now, recommendation))
        longest = max(self.behavior.up_window, self.behavior.down_window)
        while self._recommended[0][0] < now - longest:
            self._recommended.popleft()

        def within(window: float) -> list[int]:
            recent = [each for at, each in self._recommended if at > now - window]
            return [*recent, recommendation]

        floor = min(within(self.behavior.up_window))
        ceiling = max(within(self.behavior.down_window))
        return min(max(self.replicas, floor), ceiling)

    def _changed_within(self, period: float) -> int:
        return sum(change for at, change in self._changes if at > self.env.now - period)
