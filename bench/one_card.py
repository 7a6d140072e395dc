"""Stock vLLM and pixtral-serve on one GPU at the same time, asked by turns.

    python -m bench.one_card
    python -m bench.one_card --many
    python -m bench.one_card --mps
    python -m bench.one_card --also "--engine-args scheduler_cls=null"

`bench.compare --preset pixtral-12b` has one after the other. Here all are started together, and
while one is asked the others rest: what a card does in one minute and not in another falls on all
of them. Each has a copy of the weights, and 6 GB for keys and values: a GPU of 140 GB.

Asked for one token over HTTP: about a new picture each, and of short text, several at once and one
at a time. `--many` asks for texts of 64 tokens, up to 512 at once, and about 64 new pictures at
once, with 30 GB for keys and values: how many answers each runs at once is its own choice. A
refusal ends the command. `--mps` adds pixtral-serve under a daemon of CUDA's MPS, started for it,
and `--also` one whose decoder has more flags.
`--model-dir` is for a small model on a CPU, to try this command.
"""

import argparse
import asyncio
import contextlib
import itertools
import multiprocessing
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

import aiohttp

import pixtral_cli
from bench.compare import STOCK, WARM_UP, WORKERS, http_door, pixtral_12b
from bench.loops import Seen, closed_loop
from bench.pictures import jpeg
from bench.stock_vllm import prepare, stock_server

START_SECONDS = 500.0
STOCK_VLLM = "stock vLLM"
KV_CACHE_BYTES = 6 * 10**9
KV_CACHE_BYTES_OF_MANY = 30 * 10**9
WARM_UP_PICTURES = 2
# vLLM wants that much of the GPU to be free as it starts, whatever it may take.
SHARE = 0.3
SHARE_OF_MANY = 0.42


@dataclass(frozen=True, slots=True)
class Side:
    """Who is asked: `flags` are a decoder's, `variables` of its processes' environment."""

    flags: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of a turn, and how many run at once."""

    name: str
    at_once: int
    requests: int
    pictures: bool
    tokens: int = 1

    def __str__(self) -> str:
        return f"{self.name}, {self.at_once} at once"


ON_GPU = (
    Load("new", 1, 8, True),
    Load("new", 32, 96, True),
    Load("text", 1, 60, False),
    Load("text", 32, 1280, False),
)
MANY_ON_GPU = (
    *(Load("text", at_once, 8 * at_once, False, 64) for at_once in (32, 128, 256, 512)),
    Load("new", 64, 192, True),
)
ON_CPU = (Load("new", 4, 8, True), Load("text", 4, 40, False))
MANY_ON_CPU = (Load("text", 512, 512, False, 4), Load("new", 4, 8, True))


def hold(
    name: str,
    side: Side,
    model_dir: Path,
    is_small: bool,
    are_many: bool,
    log: Path,
    to: Connection,
) -> None:
    """Runs one side in a process of its own, says where it listens, and ends when told to."""
    kv_cache_bytes = str(KV_CACHE_BYTES_OF_MANY if are_many else KV_CACHE_BYTES)
    share = str(SHARE_OF_MANY if are_many else SHARE)
    if name == STOCK_VLLM:
        kv_cache = ["--kv-cache-memory-bytes", kv_cache_bytes]
        given = [*kv_cache, "--load-format", "dummy", "--gpu-memory-utilization", share]
        extra = None
        if is_small:
            given, extra = ["--gpu-memory-utilization", "0.1"], prepare()
        with stock_server(model_dir, extra, log, [*STOCK, *given]) as url:
            to.send((url, "stock"))
            to.recv()
        return
    given = ["--kv-cache-bytes", kv_cache_bytes, "--gpu-memory-fraction", share]
    given += ["--engine-args", "load_format=dummy"]
    with pixtral_cli.pixtral_stack(
        model_dir,
        http_listen="127.0.0.1:0",
        decoder_args=[*([] if is_small else given), *side.flags],
        gateway_args=["--workers", str(1 if is_small else WORKERS)],
    ) as stack:
        to.send((f"http://{stack.http_target}", model_dir.resolve().name))
        to.recv()


@contextlib.contextmanager
def started(
    sides: Mapping[str, Side], model_dir: Path, is_small: bool, are_many: bool, directory: Path
) -> Iterator[dict[str, tuple[str, str]]]:
    """All at once; yields each one's URL and the name of its model."""
    spawn = multiprocessing.get_context("spawn")
    held = {}
    for name, side in sides.items():
        ours, theirs = spawn.Pipe()
        given = (name, side, model_dir, is_small, are_many, directory / "stock.log", theirs)
        process = spawn.Process(target=hold, args=given)
        with patch.dict(os.environ, side.variables):
            process.start()
        theirs.close()
        held[name] = process, ours
    try:
        for name, (_, ours) in held.items():
            if not ours.poll(START_SECONDS):
                raise RuntimeError(f"{name} is not ready")
        yield {name: ours.recv() for name, (_, ours) in held.items()}
    finally:
        for _, ours in held.values():
            with contextlib.suppress(OSError):
                ours.send(None)
        for process, _ in held.values():
            process.join()


@contextlib.contextmanager
def mps_daemon(directory: Path) -> Iterator[dict[str, str]]:
    """CUDA's MPS for those who have what it yields in their environment."""
    pipes, logs = directory / "mps", directory / "mps-log"
    pipes.mkdir()
    logs.mkdir()
    variables = {"CUDA_MPS_PIPE_DIRECTORY": str(pipes), "CUDA_MPS_LOG_DIRECTORY": str(logs)}
    environment = os.environ | variables
    control = "nvidia-cuda-mps-control"
    subprocess.run([control, "-d"], env=environment, check=True, timeout=60)
    try:
        yield variables
    finally:
        subprocess.run([control], env=environment, input=b"quit\n", check=True, timeout=60)


async def ask_by_turns(
    sides: Mapping[str, tuple[str, str]],
    loads: tuple[Load, ...],
    turns: int,
    pictures: Iterator[bytes],
) -> dict[str, dict[str, list[Seen]]]:
    numbers = itertools.count()
    seen: dict[str, dict[str, list[Seen]]] = {side: {} for side in sides}
    # A server closes a connection that rests for some seconds; one is not used again after that.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=1)
    async with aiohttp.ClientSession(connector=connector) as session:
        doors = {
            (side, tokens): http_door(session, *where, tokens=tokens)
            for side, where in sides.items()
            for tokens in {load.tokens for load in loads}
        }
        for turn in range(-1, turns):
            # Each is first as often as it is last.
            for side in list(sides)[:: -1 if turn % 2 else 1]:
                for load in loads:

                    async def one(_: int, side: str = side, load: Load = load) -> float:
                        picture = next(pictures) if load.pictures else None
                        return await doors[side, load.tokens](
                            f"Question {next(numbers)}: what?", picture
                        )

                    if turn < 0:
                        requests = (
                            WARM_UP_PICTURES
                            if load.pictures
                            else min(WARM_UP * load.at_once, load.requests)
                        )
                        await closed_loop(one, at_once=load.at_once, requests=requests)
                        continue
                    measured = await closed_loop(one, at_once=load.at_once, requests=load.requests)
                    seen[side].setdefault(str(load), []).append(measured)
                    line = f"{measured.per_second:7.2f}/s, p50 {measured.ttft_p50 * 1e3:.1f} ms"
                    print(f"turn {turn + 1}, {side:20} {load!s:18} {line}", flush=True)
    return seen


def table(seen: Mapping[str, Mapping[str, list[Seen]]]) -> str:
    """Requests a second over all turns, and what that is of stock vLLM's."""
    lines = [f"{'':20}" + "".join(f"{side:>26}" for side in seen)]
    for load in seen[STOCK_VLLM]:
        rates = {side: _rate(loads[load]) for side, loads in seen.items()}
        cells = (f"{rate:.2f} ({rate / rates[STOCK_VLLM]:.3f}x)" for rate in rates.values())
        lines.append(f"{load:20}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


def _rate(turns: list[Seen]) -> float:
    seconds = sum(turn.requests / turn.per_second for turn in turns)
    return sum(turn.requests for turn in turns) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--many", action="store_true")
    parser.add_argument("--mps", action="store_true")
    parser.add_argument("--also", metavar="FLAGS")
    parser.add_argument("--model-dir", type=Path)
    args = parser.parse_args()
    is_small = args.model_dir is not None
    few, many = (ON_CPU, MANY_ON_CPU) if is_small else (ON_GPU, MANY_ON_GPU)
    loads = many if args.many else few
    sides = {STOCK_VLLM: Side(), "pixtral-serve": Side()}
    if args.also:
        sides["with more flags"] = Side(flags=shlex.split(args.also))
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model_dir = args.model_dir or pixtral_12b(directory)
        if args.mps:
            sides["pixtral-serve, MPS"] = Side(variables=stack.enter_context(mps_daemon(directory)))
        print(f"starting {'; '.join(sides)}", flush=True)
        urls = stack.enter_context(started(sides, model_dir, is_small, args.many, directory))
        wanted = args.turns * sum(load.requests for load in loads if load.pictures)
        wanted = len(sides) * (wanted + WARM_UP_PICTURES * len(loads))
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            pictures = list(pool.map(jpeg, range(wanted)))
        print(table(asyncio.run(ask_by_turns(urls, loads, args.turns, iter(pictures)))))


if __name__ == "__main__":
    main()
