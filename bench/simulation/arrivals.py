"""Arrivals over time: seeded traces of requests, with images that repeat."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

# From a time in seconds to the requests a second at that time.
Rate = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Request:
    """A request of a trace.

    Attributes:
        at: when it arrives, in seconds.
        image: number of its image; equal numbers are the same image. None if there is none.
        patches: patches of the image.
        text_tokens: tokens of the question.
        output_tokens: tokens of the answer.
        number: number of the request.
        before: earlier turns of the chat, after the image: name and tokens of each.
        becomes: the name of this turn in later requests of the chat.
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
        """The parts of the prompt in order: tokens, and a name that equal parts share."""
        image = [] if self.image is None else [(f"image {self.image}", self.image_tokens)]
        return [*image, *self.before, (f"text {self.number}", self.text_tokens)]

    @property
    def image_tokens(self) -> int:
        # A placeholder for each patch, and a break for each row.
        return self.patches + round(math.sqrt(self.patches))

    @property
    def prompt_tokens(self) -> int:
        return sum(tokens for _, tokens in self.parts)


@dataclass(frozen=True, slots=True)
class Traffic:
    """How requests are distributed.

    Attributes:
        reuse: share of images that repeat one of the last `window` images.
        images: share of requests that show an image.
        window: how many images can come again.
        patches: patches of each image.
        text_tokens: tokens of each question.
        output_tokens: mean of a geometric distribution; with `same_length`, of every answer.
        same_length: whether all answers have the same length.
        variation: coefficient of variation of the gaps between requests, which have a Gamma
            distribution: 1 is a Poisson process, more means bursts.
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
    """`factor` times `rate` for the first `lasting` seconds of each `every`, except the first."""

    def at_time(at: float) -> float:
        is_burst = at >= every and at % every < lasting
        return rate * factor if is_burst else rate

    return at_time


def diurnal(lowest: float, highest: float, *, period: float) -> Rate:
    """Rises from `lowest` to `highest` and falls back within `period` seconds."""
    return lambda at: lowest + (highest - lowest) * (1 - math.cos(2 * math.pi * at / period)) / 2


def trace(
    rate: Rate, *, highest: float, seconds: float, traffic: Traffic, seed: int
) -> Iterator[Request]:
    """Arrivals at a changing rate, made by thinning arrivals at the `highest` rate."""
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
    """The time between two requests, 1 on average."""
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
