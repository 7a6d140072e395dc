"""Sends the requests of `bench.decoder` to an engine, and times the answers."""

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from bench.decoder_sides import SIDE_PX, Side
from bench.loops import closed_loop
from pixtral_core.model.vision_spec import VisionSpec

BEGIN, INSTRUCTION, END_OF_INSTRUCTION = 1, 3, 4
FIRST_WORD, LAST_WORD = 1_000, 131_000
QUESTION_TOKENS = 16
STREAM_TOKENS = 64
IMAGE_OFFSET = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """The amount of work.

    Attributes:
        alone: requests of each kind that run one at a time.
        saturating: requests of each kind at saturation, in two halves.
        at_once: concurrent requests at saturation.
        streams: answers that the engine decodes while images arrive.
        arrivals: images that arrive per second during these answers.
        quiet_seconds: how long the engine decodes without images.
        busy_seconds: how long it decodes while images arrive.
    """

    alone: int
    saturating: int
    at_once: int
    streams: int
    arrivals: float
    quiet_seconds: float
    busy_seconds: float


@dataclass(slots=True)
class Asker:
    """Makes prompts that share no words, and times their answers."""

    side: Side
    spec: VisionSpec
    _numbers: Iterator[int]

    @classmethod
    def of(cls, side: Side, spec: VisionSpec) -> "Asker":
        return cls(side, spec, itertools.count())

    def text(self, length: int) -> list[int]:
        return [BEGIN, INSTRUCTION, *self._words(length - 3), END_OF_INSTRUCTION]

    def with_image(self) -> list[int]:
        placeholder = self.spec.placeholder(self.spec.grid(SIDE_PX, SIDE_PX))
        question = self._words(QUESTION_TOKENS)
        return [BEGIN, INSTRUCTION, *placeholder, *question, END_OF_INSTRUCTION]

    async def first_token(
        self, token_ids: list[int], picture: int | None = None, salt: str | None = None
    ) -> float:
        """Seconds until the only token of the answer."""
        began = time.perf_counter()
        answer = self.side.ask(
            self._name(), token_ids, tokens=1, picture=picture, offset=IMAGE_OFFSET, salt=salt
        )
        async with aclosing(answer) as deltas:
            async for _ in deltas:
                return time.perf_counter() - began
        raise RuntimeError("no token came")

    async def stream(self, length: int, tokens: int) -> AsyncIterator[tuple[float, int]]:
        """The time of each message, and how many tokens it has."""
        answer = self.side.ask(self._name(), self.text(length), tokens=tokens)
        async with aclosing(answer) as deltas:
            async for count in deltas:
                yield time.perf_counter(), count

    def _words(self, count: int) -> list[int]:
        words = random.Random(next(self._numbers))
        return [words.randrange(FIRST_WORD, LAST_WORD) for _ in range(count)]

    def _name(self) -> str:
        return f"bench-{next(self._numbers)}"


class Load:
    """The work for one engine. Every phase uses new images, numbered on from the last phase."""

    def __init__(self, side: Side, spec: VisionSpec, plan: Plan) -> None:
        self._asker = Asker.of(side, spec)
        self._plan = plan
        self._pictures = itertools.count(1)
        self.prompt_tokens = len(self._asker.with_image())

    async def warm_up(self) -> None:
        for picture in self._new(2):
            await self._asker.first_token(self._asker.text(self.prompt_tokens))
            await self._asker.first_token(self._asker.with_image(), picture)
            await self._asker.first_token(self._asker.with_image(), picture)

    async def prompts(self) -> dict[str, Any]:
        """Times to the first token: of single prompts, and of prompts at saturation."""
        seen = await _alone(self._asker, self._new(2 * self._plan.alone), self.prompt_tokens)
        saturating = self._new(self._plan.saturating)
        return seen | await _saturated(self._asker, saturating, self.prompt_tokens, self._plan)

    async def answers(self) -> dict[str, Any]:
        """The pace of running answers while images arrive."""
        count = int(self._plan.busy_seconds * self._plan.arrivals) + 1
        return await _interference(self._asker, self._new(count), self._plan)

    def _new(self, count: int) -> list[int]:
        taken = list(itertools.islice(self._pictures, count))
        self._asker.side.prepare(taken)
        return taken


async def _alone(asker: Asker, pictures: Sequence[int], length: int) -> dict[str, Any]:
    """The kinds take turns, so that a slower machine slows all of them alike."""
    kinds = ("text", "image", "next", "held", "fetch", "at_hand")
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for picture, another in zip(pictures[::2], pictures[1::2], strict=True):
        times["text"].append(await asker.first_token(asker.text(length)))
        times["image"].append(await asker.first_token(asker.with_image(), picture))
        times["next"].append(await asker.first_token(asker.with_image(), picture))
        # The salt changes the prefix, and leaves the image the same.
        salted = await asker.first_token(asker.with_image(), picture, f"salt-{picture}")
        times["held"].append(salted)
        began = time.perf_counter()
        await asker.side.fetch(another)
        times["fetch"].append(time.perf_counter() - began)
        times["at_hand"].append(await asker.first_token(asker.with_image(), another))
    milliseconds = {
        kind: {
            "p50": statistics.median(each) * 1e3,
            "min": min(each) * 1e3,
            "max": max(each) * 1e3,
        }
        for kind, each in times.items()
    }
    return {"fetch_ms": milliseconds.pop("fetch"), "ttft_ms": milliseconds}


async def _saturated(
    asker: Asker, pictures: Sequence[int], length: int, plan: Plan
) -> dict[str, Any]:
    """Prompts answered per second, with one token each; text and images take turns."""
    half = len(pictures) // 2
    took = {"text": 0.0, "image": 0.0}

    async def text(number: int) -> float:
        return await asker.first_token(asker.text(length))

    async def image(number: int) -> float:
        return await asker.first_token(asker.with_image(), pictures[number])

    kinds: dict[str, Callable[[int], Awaitable[float]]] = {"text": text, "image": image}
    for first in (0, half):
        for kind, ask in kinds.items():
            seen = await closed_loop(ask, at_once=plan.at_once, requests=half, first=first)
            took[kind] += seen.requests / seen.per_second
    return {"per_second": {kind: 2 * half / seconds for kind, seconds in took.items()}}


async def _interference(asker: Asker, pictures: Sequence[int], plan: Plan) -> dict[str, Any]:
    """Gaps between the tokens of decoding streams, without and with images that arrive."""
    came: list[list[tuple[float, int]]] = [[] for _ in range(plan.streams)]

    async def decode(seen: list[tuple[float, int]]) -> None:
        # The stream is longer than the measurement.
        async for at, count in asker.stream(STREAM_TOKENS, 12_000):
            seen.append((at, count))

    streams = [asyncio.create_task(decode(seen)) for seen in came]
    while not all(len(seen) > 1 for seen in came):
        await asyncio.sleep(0.05)
        for task in streams:
            if task.done():
                task.result()
    began = time.perf_counter()
    await asyncio.sleep(plan.quiet_seconds)
    quiet_end = time.perf_counter()
    waiting: list[asyncio.Task[float]] = []
    for number, picture in enumerate(pictures):
        await asyncio.sleep(max(0.0, quiet_end + number / plan.arrivals - time.perf_counter()))
        ask = asker.first_token(asker.with_image(), picture)
        waiting.append(asyncio.create_task(ask))
    busy_end = time.perf_counter()
    firsts = await asyncio.gather(*waiting)
    behind = time.perf_counter() - busy_end
    for task in streams:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    return {
        "quiet": _gaps(came, began, quiet_end),
        "busy": _gaps(came, quiet_end, busy_end),
        "busy_image_ttft_ms": {"p50": statistics.median(firsts) * 1e3, "max": max(firsts) * 1e3},
        "busy_images": len(firsts),
        "busy_behind_seconds": behind,
    }


def _gaps(came: Sequence[Sequence[tuple[float, int]]], since: float, until: float) -> Any:
    gaps: list[float] = []
    tokens = 0
    for stream in came:
        inside = [(at, count) for at, count in stream if since <= at < until]
        gaps += [later[0] - earlier[0] for earlier, later in itertools.pairwise(inside)]
        tokens += sum(count for _, count in inside)
    gaps.sort()
    return {
        "tokens_per_second": tokens / (until - since),
        "gap_ms": {
            "p50": statistics.median(gaps) * 1e3,
            "p99": gaps[int(len(gaps) * 0.99)] * 1e3,
            "max": gaps[-1] * 1e3,
        },
    }
