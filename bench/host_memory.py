"""Images that come again after the GPU has no room for them: with and without host memory.

    python -m bench.host_memory
    python -m bench.host_memory --images 60 --side-px 1024
    python -m bench.host_memory --images 300 --host-bytes 100000000000
    python -m bench.host_memory --model-dir .cache/random-pixtral    # on a CPU, to try this command

Two stacks on one GPU of 140 GB, at the same time: one whose decoder has `kv_host_bytes`, and one
whose decoder has none. Each has room for a fifth of the images on the card. Every image is shown
twice, in the same order, one request at a time and by turns, so that an image has left the card
when it comes again. The encoder's embeddings are in Redis by then: without host memory a decoder
computes the prompt alone.

Prints the seconds to the first token at p50, p90 and p99 of both rounds, how many of the greedy
answers of the second round are the same on both sides, and the share of a prompt's time that is
left. Keeps every number in host_memory.json in `--out`.
"""

import argparse
import base64
import contextlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from bench.compare import pixtral_12b
from bench.load_summary import spread
from bench.module_path import ROOT
from bench.one_card_report import about_run
from bench.pictures import jpeg
from bench.servers import Address, Server, ours, started

FILE = "host_memory.json"
WITH, WITHOUT = "with host memory", "without"
SIDE_PX = 640
# Keys and values of a token of Pixtral-12B: 40 layers, 8 heads of 128, twice, of 2 bytes.
TOKEN_BYTES = 40 * 8 * 128 * 2 * 2
TOKENS_OUT = 8
SHARE_ON_CARD = 5
WARM_UP = 4
TIMEOUT = aiohttp.ClientTimeout(total=300)


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer: seconds to its first token, and its text."""

    first: float
    text: str


def tokens_of_a_prompt(side_px: int) -> int:
    # A patch of 16 pixels is a token, and each row of patches ends with one more; the rest is the
    # text.
    patches = side_px // 16
    return patches * (patches + 1) + 24


async def ask(session: aiohttp.ClientSession, address: Address, picture: bytes) -> Seen:
    """Raises aiohttp.ClientError if the server refuses, RuntimeError if no token comes."""
    url, model = address
    image = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": image}},
        {"type": "text", "text": "What is this?"},
    ]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": TOKENS_OUT,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    began, first, text = time.perf_counter(), 0.0, ""
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            data = line.decode().strip().removeprefix("data: ")
            if not data or data == "[DONE]":
                continue
            for choice in json.loads(data)["choices"]:
                piece = choice["delta"].get("content") or ""
                if piece and not first:
                    first = time.perf_counter() - began
                text += piece
    if not first:
        raise RuntimeError(f"{url} answered without a text")
    return Seen(first, text)


async def measure(
    sides: Mapping[str, Address], images: int, side_px: int
) -> dict[str, list[list[Seen]]]:
    """The answers of both rounds of each side."""
    found: dict[str, list[list[Seen]]] = {side: [[], []] for side in sides}
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        for number in range(WARM_UP):
            for address in sides.values():
                await ask(session, address, jpeg(images + number, side_px, side_px))
        for turn in range(2):
            for number in range(images):
                picture = jpeg(number, side_px, side_px)
                # Each side is first as often as it is last.
                for side in list(sides)[:: -1 if number % 2 else 1]:
                    found[side][turn].append(await ask(session, sides[side], picture))
            print(f"round {turn + 1} of 2 is over", flush=True)
    return found


def report(found: Mapping[str, Sequence[Sequence[Seen]]]) -> dict[str, Any]:
    """Prints the table; returns the numbers."""
    numbers: dict[str, Any] = {"first_token_seconds": {}}
    print("| first token, ms | p50 | p90 | p99 |\n|---|---|---|---|")
    for side, rounds in found.items():
        for name, answers in zip(("new", "again"), rounds, strict=True):
            seconds = spread(each.first for each in answers)
            if seconds is None:
                raise SystemExit("no images were asked about")
            numbers["first_token_seconds"][f"{side}, {name}"] = seconds
            cells = " | ".join(f"{seconds[p] * 1e3:.1f}" for p in ("p50", "p90", "p99"))
            print(f"| {side}, {name} | {cells} |")
    medians = {side: numbers["first_token_seconds"][f"{side}, again"]["p50"] for side in found}
    numbers["share"] = medians[WITH] / medians[WITHOUT]
    pairs = list(zip(found[WITH][1], found[WITHOUT][1], strict=True))
    numbers["same_answers"] = sum(a.text == b.text for a, b in pairs)
    numbers["answers"] = len(pairs)
    print(f"an image that comes again takes {numbers['share']:.2f} of its prompt's time")
    print(f"{numbers['same_answers']} of {len(pairs)} answers are the same on both sides")
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.host_memory",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--side-px", type=int, default=SIDE_PX)
    parser.add_argument("--host-bytes", type=int, default=70 * 10**9)
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "host_memory")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model_dir = args.model_dir or pixtral_12b(directory)
        flags: list[str] = []
        if args.model_dir is None:
            tokens = args.images // SHARE_ON_CARD * tokens_of_a_prompt(args.side_px)
            on_card = tokens * TOKEN_BYTES
            flags = ["--kv-cache-bytes", str(on_card), "--gpu-memory-fraction", "0.42"]
            flags += ["--context-length", "8192", "--engine-args", "load_format=dummy"]
        servers = {
            side: Server(
                partial(
                    ours,
                    model_dir,
                    args.out / side.replace(" ", "-"),
                    redis_max_memory="8gb",
                    workers=1,
                    decoder_args=[*flags, *more],
                )
            )
            for side, more in (
                (WITHOUT, []),
                (WITH, ["--kv-host-bytes", str(args.host_bytes)]),
            )
        }
        print(f"starting; logs are in {args.out}", flush=True)
        addresses = stack.enter_context(started(servers))
        numbers = report(uvloop.run(measure(addresses, args.images, args.side_px)))
        text = json.dumps({"about": about_run("bench.host_memory"), **numbers}, indent=1)
        (args.out / FILE).write_text(f"{text}\n", "utf-8")


if __name__ == "__main__":
    main()
