"""Service times of this machine, measured with one stack and one stock server on its first GPU."""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from bench.doors import Answer, Door, open_door
from bench.fleet.sides import ROUND_ROBIN, Fleet, stock_name
from bench.mix import Album
from bench.servers import Address, started
from bench.simulation.measure import measure, quarter
from bench.simulation.times import ServiceTimes
from bench.workloads import Author, Prompt
from pixtral_cli import pixtral_stack

SIZE = "1024x1024"
MEASURED = "measured by python -m bench.fleet --service-times measured"
# vLLM's default on a GPU of 70 GiB or more.
STEP_TOKENS = 8192


def measured(fleet: Fleet, rounds: int) -> tuple[ServiceTimes, dict[str, str]]:
    """The times, each from `rounds` requests a kind, and the source of each."""
    alone = replace(fleet, count=1)
    gpu = fleet.gpus[:1]
    with pixtral_stack(
        fleet.model_dir,
        decoder_args=alone.decoder_args,
        encoder_gpus=gpu,
        decoder_gpus=gpu,
        log_dir=fleet.log_dir / "measured",
    ) as stack:
        times, sources = asyncio.run(measure(stack, rounds))
    with started(alone.servers([ROUND_ROBIN])) as addresses:
        host, engine = asyncio.run(_stock_seconds(addresses[stock_name(0)], rounds))
    times = replace(times, stock_host_seconds=host, stock_image_seconds=engine)
    if gpu:
        # Each GPU is as if it were a machine of its own.
        times = replace(times, shared_cores=0.0, tower_cores=1.0, step_tokens=STEP_TOKENS)
    sources = {name: MEASURED if "python -m" in each else each for name, each in sources.items()}
    stock = dict.fromkeys(("stock_host_seconds", "stock_image_seconds"), MEASURED)
    return times, sources | stock


async def _stock_seconds(address: Address, rounds: int) -> tuple[float, float]:
    """An image before the engine, and a new one in it."""
    url, model = address
    album = Album((SIZE,))
    album.make()
    author = Author(album, random.Random(1), itertools.count())
    shown = author.images(SIZE)
    async with open_door(url, None, model) as door:

        async def first(words: int, shown: tuple[tuple[int, str], ...] = ()) -> tuple[float, int]:
            return await _first_token(
                door, author.prompt(author.text(words), tokens=1, shown=shown)
            )

        _, tokens = await first(4, shown)
        kinds: dict[str, Callable[[], Awaitable[tuple[float, int]]]] = {
            "new image": lambda: first(4, author.images(SIZE)),
            "same image": lambda: first(4, shown),
            "short text": lambda: first(4),
            "long text": lambda: first(tokens),
        }
        seen = {}
        for name, ask in kinds.items():
            await ask()
            seen[name] = quarter([(await ask())[0] for _ in range(rounds)])
    # The same image costs no more than a text, except that it is read; a new one also costs its
    # tower.
    host = max(0.0, seen["same image"] - seen["short text"])
    return host, max(0.0, seen["new image"] - seen["long text"] - host)


async def _first_token(door: Door, prompt: Prompt) -> tuple[float, int]:
    """Seconds to it, and tokens of the prompt. Raises RuntimeError if none comes."""
    answer = Answer()
    began = time.perf_counter()
    outcome = await door(prompt, answer)
    if outcome.code != "OK":
        raise RuntimeError(f"stock vLLM answers {outcome.code}")
    return answer.came[0] - began, answer.prompt_tokens
