"""The encoder as a service at saturation: JPEGs in over gRPC, embeddings out into a real Redis.

    python -m bench.encoder_service [--seconds 120] [--at-once 32] [--model-dir DIR]

Without a model directory it makes a random tower of Pixtral-12B's shapes. Every image is new to the
encoder. Prints images a second, the share of time in which the tower runs, how long images wait
for it, and the process's memory and descriptors over the run.
"""

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import grpc
import torch
from safetensors.torch import save_file

from bench.encoder import PIXTRAL_12B, random_weights
from bench.own_redis import redis
from bench.pictures import jpeg
from pixtral.internal.v1 import encoder_pb2, encoder_pb2_grpc
from pixtral_cli.stack.redis_server import HOST, free_port
from pixtral_core.cache.embedding_key import EmbeddingKey, to_proto
from pixtral_core.server.channel import MAX_MESSAGE_BYTES

KINDS = 24
START_SECONDS = 300.0
SECONDS_BETWEEN_SAMPLES = 5.0


def write_tower(model_dir: Path) -> Path:
    """Writes a model directory from which the encoder can start: a random tower alone."""
    spec = PIXTRAL_12B
    vision = {
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.intermediate_size,
        "rope_theta": spec.rope_theta,
        "patch_size": spec.patch_size,
        "image_size": spec.max_image_size,
        "image_token_id": spec.image_token_id,
    }
    (model_dir / "params.json").write_text(json.dumps({"vision_encoder": vision}))
    save_file(
        random_weights(torch.device("cpu"), torch.bfloat16),
        model_dir / "consolidated.safetensors",
    )
    return model_dir


@contextmanager
def encoder(
    model_dir: Path, redis_url: str, more: list[str], log: IO[str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    """The process, and its addresses of gRPC and metrics. `log` gets a line of JSON a call."""
    logging = ("info", "json") if log else ("warning", "text")
    grpc_port, metrics_port = free_port(), free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pixtral_encoder", "--model-dir", str(model_dir)),
            *("--listen", f"{HOST}:{grpc_port}", "--metrics-listen", f"{HOST}:{metrics_port}"),
            *("--redis-url", redis_url, *more),
            *("--log-level", logging[0], "--log-format", logging[1]),
        ],
        stderr=log,
    )
    try:
        yield process, f"{HOST}:{grpc_port}", f"{HOST}:{metrics_port}"
    finally:
        process.terminate()
        process.wait(30)


async def ready(stub: Any) -> Any:
    """The encoder's info, once its model is loaded."""
    async with asyncio.timeout(START_SECONDS):
        while True:
            try:
                return await stub.GetEncoderInfo(
                    encoder_pb2.GetEncoderInfoRequest(), wait_for_ready=True, timeout=10
                )
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.5)


def scrape(address: str) -> dict[str, float]:
    """Every sample of a metrics page that has no label other than `le`."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def quantile(before: dict[str, float], after: dict[str, float], name: str, share: float) -> float:
    """The upper edge of the first bucket that covers `share` of the samples between two scrapes."""
    buckets = [
        (float(sample.split('le="')[1].split('"')[0]), value - before.get(sample, 0.0))
        for sample, value in after.items()
        if sample.startswith(f"{name}_bucket")
    ]
    buckets.sort()
    return next(edge for edge, count in buckets if count >= share * buckets[-1][1])


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def load(given: argparse.Namespace, model_dir: Path) -> None:
    pictures = [jpeg(seed) for seed in range(KINDS)]
    failures: dict[str, int] = {}
    times: list[float] = []
    options = [("grpc.max_send_message_length", MAX_MESSAGE_BYTES)]
    with redis() as server, encoder(model_dir, server.url, given.encoder_args) as started:
        process, address, metrics = started
        async with grpc.aio.insecure_channel(address, options) as channel:
            stub: Any = encoder_pb2_grpc.EncoderServiceStub(channel)
            info = await ready(stub)
            ends = time.monotonic() + given.warm_up + given.seconds
            numbers = iter(range(10**9))

            async def ask() -> None:
                while time.monotonic() < ends:
                    number = next(numbers)
                    # Bytes after the end of a JPEG change no pixel, and make it another file.
                    image = pictures[number % KINDS] + number.to_bytes(8, "little")
                    digest = hashlib.sha256(image).digest()
                    key = EmbeddingKey(digest, info.fingerprint, "bench")
                    began = time.perf_counter()
                    try:
                        await stub.Encode(
                            encoder_pb2.EncodeRequest(key=to_proto(key), image=image), timeout=60
                        )
                        times.append(time.perf_counter() - began)
                    except grpc.aio.AioRpcError as error:
                        name = error.code().name
                        failures[name] = failures.get(name, 0) + 1

            async def watch() -> dict[str, Any]:
                await asyncio.sleep(given.warm_up)
                times.clear()
                before, began = await asyncio.to_thread(scrape, metrics), time.monotonic()
                memory, files = [], []
                while time.monotonic() < ends - SECONDS_BETWEEN_SAMPLES:
                    memory.append(resident_bytes(process.pid))
                    files.append(descriptors(process.pid))
                    await asyncio.sleep(SECONDS_BETWEEN_SAMPLES)
                after, wall = await asyncio.to_thread(scrape, metrics), time.monotonic() - began

                def grown(name: str) -> float:
                    return after[name] - before[name]

                images = grown("pixtral_encoder_images_encoded_total")
                runs = grown("pixtral_encoder_encode_seconds_count")
                tower = grown("pixtral_encoder_encode_seconds_sum")
                cpu = grown("process_cpu_seconds_total")
                half = len(memory) // 2
                return {
                    "device": info.device,
                    "images_per_second": images / wall,
                    "tower_busy_share": tower / wall,
                    "images_per_batch": images / runs,
                    "tower_seconds_per_image": tower / images,
                    "queue_seconds_p99_below": quantile(
                        before, after, "pixtral_encoder_queue_seconds", 0.99
                    ),
                    "batch_seconds_mean": tower / runs,
                    "cores_busy": cpu / wall,
                    "answer_seconds_p50": statistics.median(times),
                    "failures": failures,
                    "resident_gb_halves": [
                        statistics.fmean(part) / 1e9 for part in (memory[:half], memory[half:])
                    ],
                    "descriptors": [min(files), max(files)],
                }

            async with asyncio.TaskGroup() as group:
                for _ in range(given.at_once):
                    group.create_task(ask())
                watching = group.create_task(watch())
            print(json.dumps(watching.result(), indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.encoder_service", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--warm-up", type=float, default=10)
    parser.add_argument("--at-once", type=int, default=32, help="concurrent requests")
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("encoder_args", nargs="*", help="after --: flags of the encoder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(load(given, given.model_dir or write_tower(Path(scratch))))


if __name__ == "__main__":
    main()
