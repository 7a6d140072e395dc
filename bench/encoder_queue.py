"""How long images wait for the encoder's tower below saturation.

    python -m bench.encoder_queue [--load 0.8] [--seconds 60] [--model-dir DIR]

Finds the throughput of the encoder service at saturation. Then it offers a share of that by an open
loop with Poisson arrivals; every image is new to the encoder. Prints how long images waited for the
tower, as the log line of each call reports it, beside the time of a batch in the same minute. An
image that arrives during a batch and runs in the next waits for less than one batch.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc

from bench.encoder_service import KINDS, encoder, ready, scrape, write_tower
from bench.loops import Arrival, Outcome, keep_at_once, open_loop, percentile
from bench.own_redis import redis
from bench.pictures import jpeg
from pixtral.internal.v1 import encoder_pb2, encoder_pb2_grpc
from pixtral_core.cache.embedding_key import EmbeddingKey, to_proto
from pixtral_core.server.channel import MAX_MESSAGE_BYTES

TIMEOUT_SECONDS = 60.0


class Pictures:
    """An endless sequence of images, each new to the encoder."""

    def __init__(self, side: int) -> None:
        self._kinds = [jpeg(seed, side, side) for seed in range(KINDS)]
        self._numbers = itertools.count()

    def __next__(self) -> bytes:
        number = next(self._numbers)
        # Bytes after the end of a JPEG change no pixel, and make it another file.
        return self._kinds[number % KINDS] + number.to_bytes(8, "little")


def queue_seconds(lines: list[str]) -> list[float]:
    """The waits that the log reports, one for each call whose image was in a batch."""
    told = []
    for line in lines:
        facts = json.loads(line)
        if facts.get("code") == "OK" and "queue_seconds" in facts:
            told.append(float(facts["queue_seconds"]))
    return told


async def measure(given: argparse.Namespace, model_dir: Path, log: Path) -> None:
    pictures = Pictures(given.side)
    options = [("grpc.max_send_message_length", MAX_MESSAGE_BYTES)]
    with (
        log.open("w") as lines_of_json,
        redis() as server,
        encoder(model_dir, server.url, given.encoder_args, lines_of_json) as started,
    ):
        _, address, metrics = started
        async with grpc.aio.insecure_channel(address, options) as channel:
            stub: Any = encoder_pb2_grpc.EncoderServiceStub(channel)
            info = await ready(stub)

            async def ask(_: int) -> Outcome:
                image = next(pictures)
                digest = hashlib.sha256(image).digest()
                key = EmbeddingKey(digest, info.fingerprint, "bench")
                request = encoder_pb2.EncodeRequest(key=to_proto(key), image=image)
                try:
                    await stub.Encode(request, timeout=TIMEOUT_SECONDS)
                except grpc.aio.AioRpcError as error:
                    return Outcome(error.code().name, time.perf_counter())
                return Outcome("OK", time.perf_counter())

            await keep_at_once(ask, at_once=given.at_once, seconds=given.warm_up)
            began = time.perf_counter()
            full = await keep_at_once(ask, at_once=given.at_once, seconds=given.seconds)
            saturation = answered(full) / (time.perf_counter() - began)
            print(f"{info.device}: {saturation:.2f} images/s at saturation", flush=True)

            before, lines = await asyncio.to_thread(scrape, metrics), len(read(log))
            arrivals = await open_loop(ask, rate=given.load * saturation, seconds=given.seconds)
            after = await asyncio.to_thread(scrape, metrics)

    def grown(name: str) -> float:
        return after[name] - before[name]

    waited = queue_seconds(read(log)[lines:])
    runs = grown("pixtral_encoder_encode_seconds_count")
    batch = grown("pixtral_encoder_encode_seconds_sum") / runs
    images = grown("pixtral_encoder_images_encoded_total")
    print(
        f"at {given.load:.0%} of it: {answered(arrivals)} of {len(arrivals)} answered, "
        f"{images / runs:.2f} images a batch, {batch * 1e3:.1f} ms a batch"
    )
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        at = percentile(waited, share)
        print(f"time in queue, {name}: {at * 1e3:.1f} ms, {at / batch:.2f} batches")
    late = percentile((each.sent for each in arrivals), 0.99)
    print(
        f"from when it was due to the answer: p50 "
        f"{statistics.median(each.ended for each in arrivals) * 1e3:.1f} ms "
        f"(the generator itself was late by {late * 1e3:.1f} ms at p99)"
    )


def answered(arrivals: list[Arrival]) -> int:
    return sum(each.code == "OK" for each in arrivals)


def read(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if line.startswith("{")]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.encoder_queue", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--load", type=float, default=0.8, help="share of saturation")
    parser.add_argument(
        "--seconds", type=float, default=60, help="seconds of each of the two loads"
    )
    parser.add_argument("--warm-up", type=float, default=10)
    parser.add_argument("--at-once", type=int, default=32, help="requests at saturation")
    parser.add_argument("--side", type=int, default=1024, help="side of the pictures, in pixels")
    parser.add_argument("--model-dir", type=Path, help="a random Pixtral-12B tower if not given")
    parser.add_argument("encoder_args", nargs="*", help="after --: flags of the encoder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model_dir = given.model_dir or write_tower(Path(scratch))
        asyncio.run(measure(given, model_dir, Path(scratch) / "log"))


if __name__ == "__main__":
    main()
