"""The cost of stock vLLM's OpenAI server for sending its tokens, beside the gateway's.

vLLM's front and its engine are two processes; only the front's CPU counts. The front does more than
the gateway: it also turns tokens into text, which here is the decoder's work.
"""

import asyncio
import time
from pathlib import Path

import psutil
import uvloop

from bench.gateway_load import sse
from bench.stock_vllm import prepare, stock_server

ARGUMENTS = ("--dtype", "bfloat16", "--max-model-len", "4096", "--no-enable-log-requests")
MEMORY = ("--gpu-memory-utilization", "0.1", "--max-num-seqs", "64")


def measure_stock(model_dir: Path, log: Path, streams: int, tokens: int) -> dict[str, float]:
    """Runs `streams` streams of `tokens` tokens each, as fast as the engine makes them."""
    with stock_server(model_dir, prepare(), log, [*ARGUMENTS, *MEMORY]) as url:
        (front,) = (
            child
            for child in psutil.Process().children()
            if "vllm.entrypoints.openai.api_server" in child.cmdline()
        )
        return uvloop.run(_measure(url.removeprefix("http://"), front, streams, tokens))


async def _measure(
    address: str, front: psutil.Process, streams: int, tokens: int
) -> dict[str, float]:
    messages = 0

    async def one(number: int, length: int) -> None:
        nonlocal messages
        body = {
            "model": "stock",
            "messages": [{"role": "user", "content": f"Question {number}?"}],
            "max_tokens": length,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
        async for text in sse(address, body):
            messages += bool(text)

    await asyncio.gather(*(one(number, 4) for number in range(streams)))
    messages = 0
    before, began = front.cpu_times(), time.perf_counter()
    await asyncio.gather(*(one(number, tokens) for number in range(streams)))
    seconds, after = time.perf_counter() - began, front.cpu_times()
    cpu = after.user + after.system - before.user - before.system
    return {
        "tokens_per_second": streams * tokens / seconds,
        "tokens_per_message": streams * tokens / messages,
        "tokens_per_cpu_second": streams * tokens / cpu,
        "cpu_share": cpu / seconds,
    }
