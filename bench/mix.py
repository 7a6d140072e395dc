"""The content of a load: conversations of several turns with images, some of which repeat."""

import random
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from bench.pictures import jpeg
from bench.simulation.arrivals import Pictures, Request, Traffic

# How many JPEGs are drawn for each size. All other images are copies with different bytes after the
# end, which change the file and no pixel.
KINDS = 4
WORDS = ("what", "is", "this", "that", "how", "many", "of", "it", "in", "which", "colour", "place")
# The text that replaces the real answers in a conversation's later turns.
ANSWER = "It is a small thing of no great use, and there are several of it."


@dataclass(frozen=True, slots=True)
class Mix:
    """The requests of a load. Shares are from 0 to 1; random choices are uniform unless noted.

    Attributes:
        images: share of conversations that show an image with their first question.
        reuse: share of those images that repeat one of the last `window` images.
        window: how many images, and how many conversations, can come again.
        sizes: sizes of images, as WIDTHxHEIGHT; a size listed twice is twice as frequent.
        follow_ups: share of requests that are the next turn of an earlier conversation.
        turns: the most turns of a conversation.
        words: the fewest and the most words of a question.
        output_tokens: mean number of an answer's tokens, which has a geometric distribution.
        cancels: share of answers that the client cancels before they are complete.
    """

    images: float = 0.6
    reuse: float = 0.5
    window: int = 100
    sizes: tuple[str, ...] = ("256x256", "512x384", "512x384", "768x1024")
    follow_ups: float = 0.4
    turns: int = 5
    words: tuple[int, int] = (8, 40)
    output_tokens: int = 32
    cancels: float = 0.0

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a TOML file with these names. Raises ValueError and OSError."""
        return cls().changed(tomllib.loads(path.read_text("utf-8")))

    def changed(self, values: Mapping[str, Any]) -> Self:
        if unknown := values.keys() - set(self.__slots__):
            raise ValueError(f"a mix has no {', '.join(sorted(unknown))}")
        lists: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in values.items()
        }
        mix = replace(self, **lists)
        for name in ("images", "reuse", "follow_ups", "cancels"):
            if not 0 <= getattr(mix, name) <= 1:
                raise ValueError(f"{name} is a share, 0 to 1")
        if not (mix.sizes and mix.window and 0 < mix.words[0] <= mix.words[1]):
            raise ValueError("sizes, window and words are needed, the fewest words first")
        for size in mix.sizes:
            _sides(size)
        return mix

    @property
    def traffic(self) -> Traffic:
        """The length of answers, and which images come again."""
        return Traffic(
            reuse=self.reuse, images=0.0, window=self.window, output_tokens=self.output_tokens
        )


@dataclass(slots=True)
class Album:
    """Images by number; the `salt` makes them differ from those of every other load."""

    sizes: tuple[str, ...]
    salt: bytes = field(default_factory=lambda: time.time_ns().to_bytes(8, "little"))
    _made: dict[tuple[int, str], bytes] = field(default_factory=dict)

    def make(self) -> None:
        """Draws all images before the load, because drawing takes a while."""
        for size in set(self.sizes):
            for kind in range(KINDS):
                self._made[kind, size] = jpeg(kind, *_sides(size))

    def picture(self, number: int, size: str | None = None) -> bytes:
        """The file of an image; without a `size`, its number chooses one."""
        size = size or self.sizes[random.Random(number).randrange(len(self.sizes))]
        return self._made[number % KINDS, size] + self.salt + number.to_bytes(8, "little")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to send: the questions of one conversation, of which the last has no answer yet.

    Attributes:
        at: when the request is due, in seconds since the start.
        questions: the questions so far.
        shown: number of the image; None if there is none.
        album: the images.
        output_tokens: the most tokens of the answer.
        given_up: tokens after which the client cancels; None if it never does.
    """

    at: float
    questions: tuple[str, ...]
    shown: int | None
    album: Album
    output_tokens: int
    given_up: int | None

    @property
    def pictures(self) -> tuple[bytes, ...]:
        """Made on use, because the images of a whole plan may not fit into memory."""
        return () if self.shown is None else (self.album.picture(self.shown),)

    @property
    def texts(self) -> Iterator[tuple[str, str]]:
        """Role and text of each message; the image goes with the first."""
        return conversation(self.questions)


def conversation(questions: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Role and text of each message; the last question has no answer."""
    for question in questions[:-1]:
        yield "user", question
        yield "assistant", ANSWER
    yield "user", questions[-1]


def plan(mix: Mix, arrivals: Iterable[Request], album: Album, seed: int) -> Iterator[Asked]:
    """A request for each arrival, which sets its time and the length of its answer."""
    rng = random.Random(seed)
    pictures = Pictures(mix.traffic, rng)
    salt = int.from_bytes(album.salt, "little")
    recent: list[tuple[tuple[str, ...], int | None]] = []
    for arrival in arrivals:
        words = rng.choices(WORDS, k=rng.randint(*mix.words))
        # The first word is new, so that no prompt begins like an earlier one.
        question = f"{salt + arrival.number}: {' '.join(words)}?"
        open_ones = [each for each in recent if len(each[0]) < mix.turns]
        if open_ones and rng.random() < mix.follow_ups:
            earlier = rng.choice(open_ones)
            recent.remove(earlier)
            chat = (*earlier[0], question), earlier[1]
        else:
            shown = pictures.next() if rng.random() < mix.images else None
            chat = (question,), shown
        recent.append(chat)
        del recent[: -mix.window]
        gives_up = rng.random() < mix.cancels
        yield Asked(
            at=arrival.at,
            questions=chat[0],
            shown=chat[1],
            album=album,
            output_tokens=arrival.output_tokens,
            given_up=rng.randint(1, arrival.output_tokens) if gives_up else None,
        )


def _sides(size: str) -> tuple[int, int]:
    width, _, height = size.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ValueError(f"{size} is not a WIDTHxHEIGHT")
    return int(width), int(height)
