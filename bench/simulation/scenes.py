"""A daily rise and a sudden burst with the autoscaler at work, and a drawing of both."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import simpy

from bench.simulation.arrivals import Rate, Traffic, bursts, diurnal, trace
from bench.simulation.fleet import Fleet, Outcome, Starts
from bench.simulation.replicas import Limits, Work
from bench.simulation.run import summary
from bench.simulation.signals import Host, Scrapes, Signals, autoscale, by_cpu, from_manifest, own
from bench.simulation.times import ServiceTimes

TIERS = ("gateway", "encoder", "decoder")
SAMPLE_SECONDS = 5.0
# The objective of deploy/prometheus/rules.yaml.
LATE_SECONDS = 2.5


@dataclass(frozen=True, slots=True)
class Scene:
    name: str
    rate: Rate
    highest: float
    seconds: float


SCENES = (
    Scene("ramp", diurnal(2, 40, period=7200), 40, 7200),
    Scene("burst", bursts(8, factor=4, every=1800, lasting=600), 32, 5400),
)


@dataclass(slots=True)
class Timeline:
    """Samples by name, and their times."""

    at: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, at: float, **values: float) -> None:
        self.at.append(at)
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)


@dataclass(frozen=True, slots=True)
class Run:
    timeline: Timeline
    outcomes: list[Outcome]


def play(
    scene: Scene,
    times: ServiceTimes,
    traffic: Traffic,
    starts: Starts,
    signals: Callable[[Scrapes], Signals],
    seed: int,
) -> Run:
    env = simpy.Environment()
    fleet = Fleet(env, times, Limits(), starts)
    scrapes = Scrapes(fleet)
    timeline = Timeline()
    env.process(scrapes.run())
    autoscale(fleet, signals(scrapes), from_manifest())
    env.process(_sample(fleet, timeline))
    arrivals = trace(
        scene.rate, highest=scene.highest, seconds=scene.seconds, traffic=traffic, seed=seed
    )
    env.process(fleet.replay(arrivals))
    env.run(until=scene.seconds)
    return Run(timeline, fleet.outcomes)


def _sample(fleet: Fleet, timeline: Timeline) -> Work:
    while True:
        timeline.add(
            fleet.env.now,
            gateway=len(fleet.gateways.ready),
            encoder=len(fleet.encoders.ready),
            decoder=len(fleet.decoders.ready),
            images=sum(each.queued_patches for each in fleet.encoders.ready) / 4096,
            waiting=sum(len(each.waiting) for each in fleet.decoders.ready),
        )
        yield fleet.env.timeout(SAMPLE_SECONDS)


def compare_thresholds(
    times: ServiceTimes, traffic: Traffic, starts: Starts, seed: int, thresholds: Sequence[float]
) -> Iterator[str]:
    """A line for each scene and each number of requests that a decoder should have."""
    manifest = from_manifest()
    for threshold in thresholds:
        decoder = manifest["decoder"]
        numbers = (threshold, *decoder.thresholds[1:])
        tiers = {**manifest, "decoder": replace(decoder, thresholds=numbers)}
        for scene in SCENES:
            run = play(scene, times, traffic, starts, partial(own, tiers=tiers), seed)
            yield _line(f"{threshold:g} a decoder", scene, run)


def draw(
    scene: Scene, times: ServiceTimes, traffic: Traffic, starts: Starts, seed: int, path: Path
) -> str:
    """Draws the scene under both kinds of signals; returns a line of results for each."""
    kinds: dict[str, Callable[[Scrapes], Signals]] = {
        "the tiers' own signals": partial(own, tiers=from_manifest()),
        "CPU, 70 %": partial(by_cpu, host=Host()),
    }
    figure, axes = plt.subplots(4, len(kinds), figsize=(13, 11), sharex=True, sharey="row")
    lines = []
    for column, (name, signals) in enumerate(kinds.items()):
        run = play(scene, times, traffic, starts, signals, seed)
        _draw_run(axes[:, column], scene, run)
        axes[0, column].set_title(name)
        lines.append(_line(name, scene, run))
    figure.tight_layout()
    figure.savefig(path, dpi=64)
    plt.close(figure)
    return "\n".join(lines)


def _line(name: str, scene: Scene, run: Run) -> str:
    seen = summary(run.outcomes, scene.seconds)
    # Requests of the last minute do not count, because they may still run.
    settled = [each for each in run.outcomes if each.request.at < scene.seconds - 60]
    refused = sum(each.first is None for each in settled)
    late = sum(each.first is not None and each.first > LATE_SECONDS for each in settled)
    return (
        f"{scene.name:6} {name:23} {len(settled):>7} requests, "
        f"{refused / len(settled):>6.1%} refused, {late / len(settled):>6.1%} late, "
        f"TTFT p50 {seen.ttft_p50:>6.2f} s, p95 {seen.ttft_p95:>6.2f} s, "
        f"{_gpu_hours(run.timeline):>5.1f} GPU hours"
    )


def _gpu_hours(timeline: Timeline) -> float:
    both = (*timeline.values["encoder"], *timeline.values["decoder"])
    return sum(both) * SAMPLE_SECONDS / 3600


def _draw_run(axes: Any, scene: Scene, run: Run) -> None:
    timeline = run.timeline
    minutes = [at / 60 for at in timeline.at]
    axes[0].plot(minutes, [scene.rate(at) for at in timeline.at], color="black")
    axes[0].set_ylabel("requests/s")
    for tier in TIERS:
        axes[1].step(minutes, timeline.values[tier], where="post", label=tier)
    axes[1].set_ylabel("replicas")
    axes[1].legend(loc="upper left", fontsize=8)
    axes[2].plot(minutes, timeline.values["waiting"], label="requests at the decoders")
    axes[2].plot(minutes, timeline.values["images"], label="images at the encoders")
    axes[2].set_ylabel("waiting")
    axes[2].set_yscale("symlog", linthresh=10)
    axes[2].legend(loc="upper left", fontsize=8)
    begun = [(each.request.at / 60, each.first) for each in run.outcomes if each.first is not None]
    axes[3].scatter(*zip(*begun, strict=True), s=1, alpha=0.3, rasterized=True)
    axes[3].axhline(LATE_SECONDS, color="red", linewidth=0.8)
    axes[3].set_ylabel("first token, s")
    axes[3].set_yscale("log")
    axes[3].set_xlabel("minutes")
    for axis in axes:
        axis.grid(alpha=0.3)
