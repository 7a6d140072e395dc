"""Arrivals over time: seeded traces of requests, with images that come again."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

# Requests a second at a time in seconds.
Rate = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Request:
    """`at` is in seconds; `image` names the picture, equal for equal ones, or is None.

    Attributes:
        before: earlier turns of the chat, which follow the image: a name and tokens of each.
        becomes: the name that this turn has in the chat's later ones.
    """

    at: float
    image: int | None
    patches: int
    text_tokens: int
    output_tokens: int
    number: int = 0
    before: tuple[tuple[str, int], ...] = ()
    becomes: str = ""

    @property
    def parts(self) -> list[tuple[str, int]]:
        """The prompt in its order: a name, equal for what can be computed once, and tokens."""
        image = [] if self.image is None else [(f"image {self.image}", self.image_tokens)]
        return [*image, *self.before, (f"text {self.number}", self.text_tokens)]

    @property
    def image_tokens(self) -> int:
        # A placeholder for each patch, and a break for each row of them.
        return self.patches + round(math.sqrt(self.patches))

    @property
    def prompt_tokens(self) -> int:
        return sum(tokens for _, tokens in self.parts)


@dataclass(frozen=True, slots=True)
class Traffic:
    """The properties of requests.

    Attributes:
        reuse: share of images that were sent before, drawn evenly from the last `window` ones.
        images: share of requests that show an image.
        output_tokens: mean of a geometric distribution; with `same_length`, of every answer.
        variation: the coefficient of variation of the time between two requests, whose distribution
            is a Gamma one: 1 is a Poisson process, and more comes in bursts.
    """

    reuse: float = 0.5
    images: float = 1.0
    window: int = 1000
    patches: int = 4096
    text_tokens: int = 64
    output_tokens: int = 100
    same_length: bool = False
    variation: float = 1.0


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
    """Arrivals of a rate that changes, by thinning those of the `highest` rate."""
    rng = random.Random(seed)
    pictures = Pictures(traffic, rng)
    at, number = 0.0, 0
    while (at := at + _gap(traffic, rng) / highest) < seconds:
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


def _gap(traffic: Traffic, rng: random.Random) -> float:
    """A time between two requests; the mean is 1."""
    if traffic.variation == 1.0:
        return rng.expovariate(1.0)
    shape = 1 / traffic.variation**2
    return rng.gammavariate(shape, 1 / shape)


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
