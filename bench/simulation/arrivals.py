"""Arrivals over time: seeded traces of requests, with images that come again."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

# Requests a second at a time in seconds.
Rate = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Request:
    """`at` is in seconds; `image` names the picture, equal for equal ones, or is None."""

    at: float
    image: int | None
    patches: int
    text_tokens: int
    output_tokens: int
    number: int = 0

    @property
    def image_tokens(self) -> int:
        # A placeholder for each patch, and a break for each row of them.
        return self.patches + round(math.sqrt(self.patches))

    @property
    def prompt_tokens(self) -> int:
        return self.text_tokens + (self.image_tokens if self.image is not None else 0)


@dataclass(frozen=True, slots=True)
class Traffic:
    """The properties of requests.

    Attributes:
        reuse: share of images that were sent before, drawn evenly from the last `window` ones.
        images: share of requests that show an image.
        output_tokens: mean of a geometric distribution; with `same_length`, of every answer.
    """

    reuse: float = 0.5
    images: float = 1.0
    window: int = 1000
    patches: int = 4096
    text_tokens: int = 64
    output_tokens: int = 100
    same_length: bool = False


def constant(rate: float) -> Rate:
    return lambda at: rate


def bursts(rate: float, *, factor: float, every: float, lasting: float) -> Rate:
    """`factor` times the rate for the first `lasting` of each `every` seconds but the first."""

    def at_time(at: float) -> float:
        is_burst = at >= every and at % every < lasting
        return rate * factor if is_burst else rate

    return at_time


def diurnal(lowest: float, highest: float, *, period: float) -> Rate:
    """From the lowest to the highest and back within `period` seconds."""
    return lambda at: lowest + (highest - lowest) * (1 - math.cos(2 * math.pi * at / period)) / 2


def trace(
    rate: Rate, *, highest: float, seconds: float, traffic: Traffic, seed: int
) -> Iterator[Request]:
    """Poisson arrivals of a rate that changes, by thinning those of the `highest` rate."""
    rng = random.Random(seed)
    pictures = Pictures(traffic, rng)
    at, number = 0.0, 0
    while (at := at + rng.expovariate(highest)) < seconds:
        if rng.random() * highest > rate(at):
            continue
        number += 1
        yield Request(
            at=at,
            image=pictures.next() if rng.random() < traffic.images else None,
            patches=traffic.patches,
            text_tokens=traffic.text_tokens,
            output_tokens=_length(traffic, rng),
            number=number,
        )


def _length(traffic: Traffic, rng: random.Random) -> int:
    if traffic.same_length:
        return traffic.output_tokens
    return 1 + int(rng.expovariate(1 / max(traffic.output_tokens - 0.5, 0.5)))


@dataclass(slots=True)
class Pictures:
    traffic: Traffic
    rng: random.Random
    made: int = 0
    recent: list[int] = field(default_factory=list)

    def next(self) -> int:
        if self.recent and self.rng.random() < self.traffic.reuse:
            return self.rng.choice(self.recent)
        self.made += 1
        self.recent.append(self.made)
        if len(self.recent) > self.traffic.window:
            self.recent.pop(0)
        return self.made
