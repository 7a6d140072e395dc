"""The service times of a stack on this machine, one kind of work after the other."""

import asyncio
import itertools
import statistics
import time
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from bench.pictures import jpeg
from bench.simulation.times import ServiceTimes
from pixtral_client import AsyncClient
from pixtral_client.stack import Stack

MEASURED = "python -m bench.simulate measure: two CPU cores, the random checkpoint of make demo"
SOURCES = {
    "tower_seconds": "assumed: on a CPU a batch takes what its patches take",
    "embedding_seconds": "within prefill_seconds, which was measured on an image's tokens",
    "kv_tokens": "1 GiB, at 1 KiB a token of this checkpoint in bfloat16 and vLLM's two copies",
    "step_tokens": "vLLM's default",
    "shared_cores": "cores of the machine",
    "stock_image_seconds": "not measured",
}
PATCHES = 4096
STREAMED = 128
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Seen:
    """Seconds to the first token, in the encoder, and to the end; tokens of the prompt."""

    first: float
    encode: float
    last: float
    prompt_tokens: int


class Asker:
    """Asks what no cache has seen, except for the picture that it is given."""

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
        # New from its first word on, so that no prefix of it is known.
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


def scrape(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        text = response.read().decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


async def measure(stack: Stack, rounds: int) -> tuple[ServiceTimes, dict[str, str]]:
    """Medians of `rounds` requests a kind, one at a time on an otherwise idle stack."""
    async with AsyncClient(stack.target, timeout=300) as client:
        asker = Asker(client)
        short = await repeat(rounds, asker.ask)
        alone = await repeat(max(rounds // 3, 2), lambda: asker.ask(tokens=STREAMED))
        began = time.perf_counter()
        many = await asyncio.gather(*(asker.ask(tokens=STREAMED) for _ in range(AT_ONCE)))
        together = time.perf_counter() - began

        metrics = stack.addresses["encoder"].metrics
        process = _encoder(stack)
        before, cpu_before = scrape(metrics), process.cpu_times()
        new = await repeat(rounds, lambda: asker.ask(picture=asker.new_picture()))
        after, cpu_after = scrape(metrics), process.cpu_times()
        known = asker.new_picture()
        same = await repeat(rounds, lambda: asker.ask(picture=known))

    def median(seen: list[Seen], name: str = "first") -> float:
        return statistics.median(float(getattr(each, name)) for each in seen)

    one = statistics.median((each.last - each.first) / (STREAMED - 1) for each in alone)
    sixteen = (together - max(each.first for each in many)) / (STREAMED - 1)
    decode = max(0.0, (sixteen - one) / (AT_ONCE - 1))
    step = one - decode
    runs = (
        after["pixtral_encoder_encode_seconds_count"]
        - before["pixtral_encoder_encode_seconds_count"]
    )
    tower = (
        after["pixtral_encoder_encode_seconds_sum"] - before["pixtral_encoder_encode_seconds_sum"]
    ) / runs
    encode = median(new, "encode")
    cpu = (cpu_after.user + cpu_after.system - cpu_before.user - cpu_before.system) / runs
    prefill = (median(new) - encode - median(same)) / (
        new[0].prompt_tokens - short[0].prompt_tokens
    )
    gateway = median(short) - step - short[0].prompt_tokens * prefill
    image = median(same) - median(short)
    times = ServiceTimes(
        gateway_seconds=gateway,
        gateway_image_seconds=image,
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
    )
    print(
        f"medians in ms: text {median(short) * 1e3:.1f}, new picture {median(new) * 1e3:.1f}, "
        f"the same again {median(same) * 1e3:.1f}, in the encoder {encode * 1e3:.1f}, "
        f"its tower {tower * 1e3:.1f}, its CPU {cpu * 1e3:.1f}, "
        f"a token {one * 1e3:.2f}, with {AT_ONCE} at once {sixteen * 1e3:.2f}"
    )
    return times, {field.name: SOURCES.get(field.name, MEASURED) for field in fields(times)}


def _encoder(stack: Stack) -> psutil.Process:
    port = int(stack.addresses["encoder"].grpc.rpartition(":")[2])
    for process in psutil.Process().children(recursive=True):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                return process
    raise RuntimeError("no process listens at the encoder's address")
