"""Loads that others publish for multimodal models, made here without a download.

Each load names its source and the differences in `what`. Images come from `bench.mix.Album`: JPEGs
of the given sizes, each a different file. Words are a few short ones of about one token each. Texts
share no beginning unless the workload says so.
"""

import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from bench.mix import WORDS, Album, conversation

POOL = 200
# The first number of a pool's images; no other image uses these numbers.
FIRST_OF_POOL = 1_000_000
# A small workload divides the sides of images, the words and the tokens by these factors.
SMALLER_SIDES = 4
FEWER_WORDS = 20
FEWER_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request for `bench.doors`; `shown` has number and size of each image."""

    questions: tuple[str, ...]
    shown: tuple[tuple[int, str], ...]
    output_tokens: int
    album: Album
    given_up: None = None

    @property
    def texts(self) -> Iterator[tuple[str, str]]:
        return conversation(self.questions)

    @property
    def pictures(self) -> tuple[bytes, ...]:
        return tuple(self.album.picture(number, size) for number, size in self.shown)


@dataclass(slots=True)
class Author:
    """Writes prompts.

    Prompts never repeat a text or a new image if their authors share `numbers`. Authors with a
    different `first_of_pool` have different pools of images.
    """

    album: Album
    rng: random.Random
    numbers: Iterator[int]
    is_small: bool = False
    first_of_pool: int = FIRST_OF_POOL

    def text(self, words: int) -> str:
        if self.is_small:
            words = math.ceil(words / FEWER_WORDS)
        return f"{next(self.numbers)}: {' '.join(self.rng.choices(WORDS, k=words))}?"

    def images(self, *sizes: str) -> tuple[tuple[int, str], ...]:
        return tuple((next(self.numbers), self._sized(size)) for size in sizes)

    def of_pool(self, size: str) -> tuple[tuple[int, str], ...]:
        """One of `POOL` images, which are the same in every turn."""
        return ((self.first_of_pool + self.rng.randrange(POOL), self._sized(size)),)

    def by_zipf(self, size: str, images: int) -> tuple[tuple[int, str], ...]:
        """One of `images` images of the pool; the n-th comes 1/n times as often as the first."""
        weights = [1 / (each + 1) for each in range(images)]
        (image,) = self.rng.choices(range(images), weights)
        return ((self.first_of_pool + image, self._sized(size)),)

    def prompt(
        self, *questions: str, tokens: int, shown: tuple[tuple[int, str], ...] = ()
    ) -> Prompt:
        if self.is_small:
            tokens = math.ceil(tokens / FEWER_TOKENS)
        return Prompt(questions, shown, tokens, self.album)

    def _sized(self, size: str) -> str:
        return smaller(size) if self.is_small else size


@dataclass(frozen=True, slots=True)
class Workload:
    """`units` times the prompts that `write` returns.

    Attributes:
        name: short name.
        what: source and content, in a sentence.
        write: writes the prompts of a unit.
        units: how many units to write.
        at_once: concurrent conversations, or prompts; None if requests are due by `rate`.
        rate: requests due a second.
        variation: coefficient of variation of the gaps between them; 1 is a Poisson process.
        is_chat: whether a unit is a conversation, whose turns follow each other; if not, its
            prompts are independent and in random order.
        sizes: sizes of its images.
    """

    name: str
    what: str
    write: Callable[[Author], list[Prompt]]
    units: int
    at_once: int | None = None
    rate: float = 0.0
    variation: float = 1.0
    is_chat: bool = False
    sizes: tuple[str, ...] = field(default=())

    def sessions(self, author: Author) -> list[list[Prompt]]:
        """Lists of prompts that follow each other."""
        written = [self.write(author) for _ in range(self.units)]
        if self.is_chat:
            return written
        strangers = [[prompt] for prompt in itertools.chain.from_iterable(written)]
        author.rng.shuffle(strangers)
        return strangers

    def small(self) -> "Workload":
        """The same for a CPU, with a few smaller requests."""
        at_once = self.at_once and min(self.at_once, 4)
        sizes = tuple(map(smaller, self.sizes))
        what = f"A few smaller requests like these: {self.what}"
        return replace(self, what=what, units=min(self.units, 4), at_once=at_once, sizes=sizes)


def smaller(size: str) -> str:
    sides = (int(side) // SMALLER_SIDES for side in size.split("x"))
    return "x".join(map(str, sides))


def texts(at_once: int, requests: int, tokens: int = 64) -> Workload:
    return Workload(
        f"text, {at_once} at once",
        f"Short texts, {tokens} tokens out, {at_once} at once.",
        lambda author: [author.prompt(author.text(4), tokens=tokens)],
        units=requests,
        at_once=at_once,
    )


def new_images(at_once: int, requests: int, size: str = "1024x1024") -> Workload:
    return Workload(
        f"new images, {at_once} at once",
        f"A new image of {size} in each request, a short question, 1 token out, {at_once} at once.",
        lambda author: [author.prompt(author.text(4), tokens=1, shown=author.images(size))],
        units=requests,
        at_once=at_once,
        sizes=(size,),
    )


def random_mm() -> Workload:
    sizes = ("256x256", "1280x720")

    def write(author: Author) -> list[Prompt]:
        shown = author.images(author.rng.choice(sizes))
        return [author.prompt(author.text(1000), tokens=128, shown=shown)]

    what = (
        "vLLM's `random-mm` with the defaults of `vllm bench serve`: an image of 256x256 or "
        "1280x720, 1,000 words, 128 tokens out; 64 at once."
    )
    return Workload("random-mm", what, write, units=160, at_once=64, sizes=sizes)


def several(count: int) -> Workload:
    size = "640x640"
    what = (
        f"vLLM's blog on separate encoders: {count} of 640x640, 400 words, 150 tokens out; "
        "32 at once, while the blog sends them at a rate."
    )

    def write(author: Author) -> list[Prompt]:
        shown = author.images(*[size] * count)
        return [author.prompt(author.text(400), tokens=150, shown=shown)]

    return Workload(f"640x640, {count} each", what, write, units=48, at_once=32, sizes=(size,))


def pool() -> Workload:
    size = "1024x1024"
    what = (
        f"Dynamo's pool: each shows one of {POOL} images of 1024x1024, 400 words, 150 tokens out; "
        "64 at once. All turns use the same images. Most are new in the first turn, as at the "
        "beginning of Dynamo's 1,000 requests."
    )

    def write(author: Author) -> list[Prompt]:
        return [author.prompt(author.text(400), tokens=150, shown=author.of_pool(size))]

    return Workload(f"pool of {POOL}", what, write, units=200, at_once=64, sizes=(size,))


def chats(conversations: int = 64, at_once: int = 32) -> Workload:
    size, turns = "1024x1024", 6
    what = (
        f"{conversations} conversations of {turns} turns on an image of 1024x1024, 20 words a "
        f"question, 48 tokens out; {at_once} conversations at once. Earlier answers are replaced "
        "by a fixed sentence."
    )

    def write(author: Author) -> list[Prompt]:
        shown = author.images(size)
        questions = [author.text(20) for _ in range(turns)]
        return [
            author.prompt(*questions[: turn + 1], tokens=48, shown=shown) for turn in range(turns)
        ]

    return Workload(
        "chats of 6 turns",
        what,
        write,
        units=conversations,
        at_once=at_once,
        is_chat=True,
        sizes=(size,),
    )


def zipf(images: int, at_once: int, requests: int) -> Workload:
    size = "1024x1024"
    what = (
        f"Each shows one of {images} images of 1024x1024, by Zipf's law, 20 words, 32 tokens out; "
        f"{at_once} at once."
    )

    def write(author: Author) -> list[Prompt]:
        return [author.prompt(author.text(20), tokens=32, shown=author.by_zipf(size, images))]

    return Workload("Zipf", what, write, units=requests, at_once=at_once, sizes=(size,))


def shared_prefix() -> Workload:
    size, questions = "1280x720", 5
    what = (
        f"llm-d's shared prefix: groups of {questions} prompts that share 3 images of 1280x720 "
        "and 1,000 words, each with 300 more words, 300 tokens out; 4 requests a second, "
        "by a Poisson process (llm-d: 5 to 40 a second for 8 servers)."
    )

    def write(author: Author) -> list[Prompt]:
        shown, begin = author.images(*[size] * 3), author.text(1000)
        return [
            author.prompt(f"{begin} {author.text(300)}", tokens=300, shown=shown)
            for _ in range(questions)
        ]

    return Workload("shared prefix", what, write, units=24, rate=4.0, sizes=(size,))


def full_hd(count: int) -> Workload:
    size = "1920x1080"
    what = (
        f"SGLang's: {count} of 1920x1080, 100 words, 256 tokens out; 8 at once, while SGLang sends "
        "0.2 to 1 a second."
    )

    def write(author: Author) -> list[Prompt]:
        shown = author.images(*[size] * count)
        return [author.prompt(author.text(100), tokens=256, shown=shown)]

    return Workload(f"1080p, {count} each", what, write, units=16, at_once=8, sizes=(size,))


def sliding_window() -> Workload:
    size, turns, in_sight = "2400x1080", 8, 5
    what = (
        "Dynamo's sliding window: 30 users of 8 turns; each turn shows 5 images of 2400x1080, 4 of "
        "them from the turn before, and 8,000 words, 1,024 tokens out; 30 at once."
    )

    def write(author: Author) -> list[Prompt]:
        shown = author.images(*[size] * (turns + in_sight - 1))
        return [
            author.prompt(author.text(8000), tokens=1024, shown=shown[turn : turn + in_sight])
            for turn in range(turns)
        ]

    return Workload(
        "sliding window", what, write, units=30, at_once=30, is_chat=True, sizes=(size,)
    )


# ServeGen's requests with images, from its published clients: points of a distribution, as (share,
# value). Between two points, values grow geometrically.
WORDS_OF_SERVEGEN = ((0.0, 10), (0.5, 106), (0.75, 1096), (0.95, 2379), (1.0, 3000))
TOKENS_OF_SERVEGEN = ((0.0, 10), (0.5, 97), (0.95, 341), (1.0, 800))
IMAGES_OF_SERVEGEN = {1: 0.80, 2: 0.07, 3: 0.07, 4: 0.06}
# The same pixels as ServeGen's images at 1/8, 3/8, 5/8 and 7/8 of the distribution: 150, 500, 880
# and 1,210 patches of 28 pixels a side.
SIZES_OF_SERVEGEN = ("392x300", "720x544", "960x720", "1120x848")


def servegen(rate: float = 3.0, requests: int = 120) -> Workload:
    what = (
        "ServeGen's mix of a provider's requests with images: 1 to 4 images (1.4 on average) of "
        "392x300 to 1120x848, 10 to 3,000 words (median 106), 10 to 800 tokens out (median 97); "
        f"{rate:g} requests a second, in bursts (gaps by a Gamma distribution with a coefficient "
        "of variation of 2.2)."
    )

    def write(author: Author) -> list[Prompt]:
        (count,) = author.rng.choices([*IMAGES_OF_SERVEGEN], [*IMAGES_OF_SERVEGEN.values()])
        words, tokens = (
            drawn(points, author.rng.random()) for points in (WORDS_OF_SERVEGEN, TOKENS_OF_SERVEGEN)
        )
        shown = author.images(*author.rng.choices(SIZES_OF_SERVEGEN, k=count))
        return [author.prompt(author.text(words), tokens=tokens, shown=shown)]

    return Workload(
        "ServeGen",
        what,
        write,
        units=requests,
        rate=rate,
        variation=2.2,
        sizes=SIZES_OF_SERVEGEN,
    )


def drawn(points: Sequence[tuple[float, int]], share: float) -> int:
    """The value at a share of the distribution."""
    above = min(bisect_right([at for at, _ in points], share), len(points) - 1)
    (begin, low), (end, high) = points[above - 1], points[above]
    factor: float = (high / low) ** ((share - begin) / (end - begin))
    return round(low * factor)


MANY = (
    texts(32, 256),
    texts(128, 768),
    texts(256, 1024),
    texts(512, 2048),
    new_images(64, 128),
)
PUBLIC = (
    random_mm(),
    pool(),
    chats(),
    *(several(count) for count in (1, 2, 3, 4)),
    shared_prefix(),
    *(full_hd(count) for count in (1, 2, 4, 8)),
    servegen(),
    sliding_window(),
)
FEW = (
    new_images(1, 8),
    new_images(32, 96),
    texts(1, 60, tokens=1),
    texts(32, 1280, tokens=1),
)


def for_fleet(gpus: int) -> tuple[Workload, ...]:
    """The loads of `bench.fleet`, whose requests, rates and images grow with the GPUs."""
    return (
        replace(new_images(32 * gpus, 64 * gpus), name="new images"),
        zipf(60 * gpus, 32 * gpus, 160 * gpus),
        chats(32 * gpus, 32 * gpus),
        servegen(3.0 * gpus, 60 * gpus),
    )
