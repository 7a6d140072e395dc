"""Measures the service times of a stack on this machine, one kind of work after the other."""

import asyncio
import itertools
import statistics
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from bench.pictures import jpeg
from bench.simulation.times import ServiceTimes
from pixtral_cli.stack.process_stack import Stack
from pixtral_client import AsyncClient

MEASURED = "python -m bench.simulate measure: two CPU cores, models.random_checkpoint"
SOURCES = {
    "tower_seconds": "assumed: on a CPU the time of a batch is proportional to its patches",
    "embedding_seconds": "part of prefill_seconds, which was measured on an image's tokens",
    "kv_tokens": "computed: 1 GiB at 1 KiB a token, which never fills",
    "step_tokens": "vLLM's default",
    "shared_cores": "cores of the machine",
    "stock_image_seconds": "not measured",
    "stock_host_seconds": "not measured",
}
PATCHES = 4096
STREAMED = 128
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Seen:
    """The times of one request in seconds, and the tokens of its prompt.

    Attributes:
        first: until the first token.
        encode: in the encoder.
        last: until the end.
        prompt_tokens: tokens of the prompt.
    """

    first: float
    encode: float
    last: float
    prompt_tokens: int


class Asker:
    """Asks questions that no cache knows, except for the image that a caller passes."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._numbers = itertools.count(time.time_ns())

    def new_picture(self) -> bytes:
        return jpeg(next(self._numbers) % 2**31)

    async def ask(
        self,
        *,
        picture: bytes | None = None,
        tokens: int = 1,
    ) -> Seen:
        # The first word is new, so that no prefix is cached.
        content: list[Any] = [f"{next(self._numbers)}: what is this, and what is it for?"]
        if picture is not None:
            content.insert(0, picture)
        began = time.perf_counter()
        first = 0.0
        stream = await self._client.stream(
            [{"role": "user", "content": content}],
            max_tokens=tokens,
            temperature=0,
            ignore_eos=True,
        )
        async with stream:
            async for _ in stream:
                first = first or time.perf_counter() - began
        last = time.perf_counter() - began
        done = stream.completion
        if done is None:
            raise RuntimeError("a stream ended without its completion")
        return Seen(first, done.timings.encode, last, done.usage.prompt_tokens)


async def repeat(times: int, ask: Callable[[], Awaitable[Seen]]) -> list[Seen]:
    await ask()
    return [await ask() for _ in range(times)]


async def measure(stack: Stack, rounds: int) -> tuple[ServiceTimes, dict[str, str]]:
    """The times of `rounds` requests of each kind, one at a time, on an otherwise idle stack.

    Each time is the first quartile, because other work of the machine only slows requests down.
    """
    async with AsyncClient(stack.target, timeout=300, max_retries=0) as client:
        asker = Asker(client)
        short = await repeat(rounds, asker.ask)
        alone = await repeat(max(rounds // 3, 3), lambda: asker.ask(tokens=STREAMED))
        bundles = [
            await asyncio.gather(*(asker.ask(tokens=STREAMED) for _ in range(AT_ONCE)))
            for _ in range(3)
        ]
        encoder = _EncoderWatch(stack)
        towers: list[tuple[float, float]] = []

        async def show_new() -> Seen:
            before = encoder.seconds()
            seen = await asker.ask(picture=asker.new_picture())
            after = encoder.seconds()
            towers.append((after[0] - before[0], after[1] - before[1]))
            return seen

        new = await repeat(rounds, show_new)
        known = asker.new_picture()
        same = await repeat(rounds, lambda: asker.ask(picture=known))

    text, image = (quarter(each.first for each in seen) for seen in (short, same))
    one = quarter((each.last - each.first) / (STREAMED - 1) for each in alone)
    many = quarter(
        (max(each.last for each in bundle) - max(each.first for each in bundle)) / (STREAMED - 1)
        for bundle in bundles
    )
    decode = max(0.0, (many - one) / (AT_ONCE - 1))
    step = one - decode
    encode = quarter(each.encode for each in new)
    tower = quarter(seconds for seconds, _ in towers)
    cpu = quarter(seconds for _, seconds in towers)
    image_tokens = new[0].prompt_tokens - short[0].prompt_tokens
    prefill = (quarter(each.first - each.encode for each in new) - image) / image_tokens
    times = ServiceTimes(
        gateway_seconds=max(0.0, text - step - short[0].prompt_tokens * prefill),
        gateway_image_seconds=max(0.0, image - text),
        preprocess_seconds=encode - tower,
        tower_seconds=0.0,
        tower_patch_seconds=tower / PATCHES,
        tower_cores=min(2.0, max(1.0, (cpu - (encode - tower)) / tower)),
        embedding_seconds=0.0,
        step_seconds=step,
        prefill_seconds=prefill,
        decode_seconds=decode,
        kv_tokens=1 << 20,
        step_tokens=2048,
        shared_cores=float(psutil.cpu_count() or 1),
        stock_image_seconds=0.0,
        stock_host_seconds=0.0,
    )
    print(
        f"ms: text {text * 1e3:.1f}, a repeated image {image * 1e3:.1f}, "
        f"a new image {quarter(each.first for each in new) * 1e3:.1f}, "
        f"in the encoder {encode * 1e3:.1f}, its tower {tower * 1e3:.1f}, its CPU {cpu * 1e3:.1f}, "
        f"a token {one * 1e3:.2f}, with {AT_ONCE} at once {many * 1e3:.2f}"
    )
    return times, {field.name: SOURCES.get(field.name, MEASURED) for field in fields(times)}


def quarter(values: Iterable[float]) -> float:
    return statistics.quantiles(values, n=4)[0]


class _EncoderWatch:
    """Seconds that the encoder's tower has run, and the encoder's CPU seconds, since its start."""

    def __init__(self, stack: Stack) -> None:
        self._metrics = stack.addresses["encoder"].metrics

    def seconds(self) -> tuple[float, float]:
        url = f"http://{self._metrics}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            text = response.read().decode()
        samples = {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        return samples["pixtral_encoder_encode_seconds_sum"], samples["process_cpu_seconds_total"]
