"""An open-loop load on a gateway, with images, conversations and bursts, and a report.

    make load
    python -m bench.load --base-url http://127.0.0.1:8000 --request-rate 5 --seconds 60
    python -m bench.load --base-url grpc://127.0.0.1:50051 --request-rate 5 --burst 4 --cancels 0.1
    python -m bench.load --model-dir DIR --request-rate 5    # starts the stack itself

Requests are due at the times of a Poisson process, and leave whether or not earlier ones have
ended. Latencies count from when a request was due, so neither a slow server nor a slow generator
hides its delay. The mix describes the requests: the flags override a TOML file (--mix), which
overrides the defaults below. Prints the lines of `vllm bench serve`, and writes an HTML page and
JSON to --result-dir. Over HTTP it loads any server of OpenAI's API.
"""

import argparse
import asyncio
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import uvloop

from bench.doors import Answer, open_door
from bench.load_report import page, table
from bench.load_summary import Record, summary
from bench.loops import Outcome, at_times, keep_at_once
from bench.mix import Album, Asked, Mix, plan
from bench.module_path import OURS, ROOT, module_path
from bench.simulation.arrivals import Rate, bursts, constant, trace
from pixtral_cli import pixtral_stack


@dataclass(frozen=True, slots=True)
class Arriving:
    """When requests arrive.

    Attributes:
        rate: requests a second outside of bursts; infinite in a closed loop.
        seconds: how long requests are due.
        burst: the factor by which a burst exceeds the rate.
        burst_seconds: length of a burst.
        burst_every: seconds from one burst to the next; the first comes after as many.
        at_once: most concurrent requests; None for no limit.
        requests: most requests in all; None for no limit.
        seed: seed of arrivals and mix.
    """

    rate: float
    seconds: float
    burst: float = 1.0
    burst_seconds: float = 5.0
    burst_every: float = 30.0
    at_once: int | None = None
    requests: int | None = None
    seed: int = 0

    @property
    def is_closed(self) -> bool:
        return math.isinf(self.rate)

    def planned(self, mix: Mix, album: Album) -> Iterator[Asked]:
        # A closed loop has no due times: a request starts when another has ended.
        rate, seconds = (1.0, math.inf) if self.is_closed else (self.rate, self.seconds)
        at_time: Rate = constant(rate)
        if self.burst != 1:
            at_time = bursts(
                rate, factor=self.burst, every=self.burst_every, lasting=self.burst_seconds
            )
        arrivals = trace(
            at_time,
            highest=rate * max(1.0, self.burst),
            seconds=seconds,
            traffic=mix.traffic,
            seed=self.seed,
        )
        return plan(mix, islice(arrivals, self.requests), album, self.seed)


async def load(url: str, arriving: Arriving, mix: Mix, api_key: str, model: str) -> list[Record]:
    album = Album(mix.sizes)
    album.make()
    planned = arriving.planned(mix, album)
    pending: dict[int, Asked] = {}
    answers: dict[int, Answer] = {}

    def times() -> Iterator[float]:
        for number, asked in enumerate(planned):
            pending[number] = asked
            yield asked.at

    async with open_door(url, api_key or None, model) as door:

        async def ask(number: int) -> Outcome:
            answer = answers[number] = Answer()
            asked = next(planned) if arriving.is_closed else pending.pop(number)
            outcome: Outcome = await door(asked, answer)
            return outcome

        if arriving.is_closed:
            at_once = arriving.at_once or 1
            arrivals = await keep_at_once(ask, at_once=at_once, seconds=arriving.seconds)
        else:
            arrivals = await at_times(ask, times(), at_once=arriving.at_once)
    return [Record.of(arrival, answers[arrival.number]) for arrival in arrivals]


async def loaded(url: str, **flags: float | str) -> dict[str, Any]:
    """The summary of a load that runs in its own process; `flags` are those of this module."""
    pairs = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.load", "--base-url", url, "--json", *pairs),
        env={**os.environ, **module_path(*OURS)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise RuntimeError("the load generator has failed")
    found: dict[str, Any] = json.loads(out)
    return found


def add_mix(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that change a mix."""
    group = parser.add_argument_group("the mix", Mix.__doc__)
    group.add_argument("--mix", type=Path, help="a TOML file with values that differ")
    for each in fields(Mix):
        default = each.default
        kind: Any = type(default)
        many: dict[str, Any] = {}
        if isinstance(default, tuple):
            kind = type(default[0])
            many = {"nargs": "+" if kind is str else len(default)}
        flag = f"--{each.name.replace('_', '-')}"
        group.add_argument(flag, type=kind, help=f"default {default}", **many)


def mix_of(args: argparse.Namespace) -> Mix:
    given = {each.name: getattr(args, each.name) for each in fields(Mix)}
    mix = Mix() if args.mix is None else Mix.read(args.mix)
    return mix.changed({name: value for name, value in given.items() if value is not None})


@contextmanager
def serving(args: argparse.Namespace) -> Iterator[str]:
    """The URL to load; starts a stack if none is given."""
    if args.base_url is not None:
        yield args.base_url
        return
    with pixtral_stack(args.model_dir, gateway_args=("--log-level", "warning")) as stack:
        yield f"grpc://{stack.target}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whom = parser.add_mutually_exclusive_group(required=True)
    whom.add_argument("--base-url", help="http://, https:// or grpc://, with host:port")
    whom.add_argument("--model-dir", type=Path, help="start the whole stack, with this model")
    parser.add_argument("--model", default="", help="the model's name, where a server needs it")
    parser.add_argument("--api-key", default=os.environ.get("PIXTRAL_API_KEY", ""))
    parser.add_argument(
        "--request-rate",
        type=float,
        default=2.0,
        help="requests due a second; inf: a closed loop of --max-concurrency requests",
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the load")
    parser.add_argument("--num-prompts", type=int, help="most requests in all")
    parser.add_argument("--max-concurrency", type=int, help="more requests wait; the wait counts")
    parser.add_argument("--burst", type=float, default=1.0, help="factor of the rate in a burst")
    parser.add_argument("--burst-seconds", type=float, default=5.0, help="length of a burst")
    parser.add_argument("--burst-every", type=float, default=30.0, help="seconds between bursts")
    parser.add_argument("--seed", type=int, default=0, help="seed of arrivals and mix")
    parser.add_argument("--result-dir", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--json", action="store_true", help="print the summary alone, as JSON")
    add_mix(parser)
    args = parser.parse_args(arguments)
    if math.isinf(args.request_rate) and args.num_prompts is not None:
        parser.error("--request-rate inf ends after --seconds")
    try:
        mix = mix_of(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    arriving = Arriving(
        args.request_rate,
        args.seconds,
        burst=args.burst,
        burst_seconds=args.burst_seconds,
        burst_every=args.burst_every,
        at_once=args.max_concurrency,
        requests=args.num_prompts,
        seed=args.seed,
    )
    with serving(args) as url:
        records = uvloop.run(load(url, arriving, mix, args.api_key, args.model))
    found = summary(records, args.seconds)
    if args.json:
        print(json.dumps(found))
        return
    print(table(found))
    args.result_dir.mkdir(parents=True, exist_ok=True)
    (args.result_dir / "load.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    html = args.result_dir / "load.html"
    html.write_text(page(records, found, arriving, mix), "utf-8")
    print(f"report: {html}")


if __name__ == "__main__":
    main()
