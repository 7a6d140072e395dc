"""The cost of bfloat16 and float32 for the language model on this CPU, in the decoder's own engine.

    python -m bench.decoder_dtypes MODEL_DIR
    ONEDNN_MAX_CPU_ISA=AVX2 python -m bench.decoder_dtypes MODEL_DIR

The second command imitates a CPU without bfloat16 instructions. Each dtype has its own engine, one
after the other. Prints, as wall time and as CPU seconds of all processes, the median of three runs
for a token of one answer, a token of four concurrent answers, and a prompt token of a long text.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path

import psutil
import torch

from bench.module_path import ROOT
from pixtral_core.generation.sampling import Sampling
from pixtral_core.model.vision_spec import read_params
from pixtral_decoder.engine.compute_dtype import imitates_bfloat16
from pixtral_decoder.engine.engine import DecoderEngine
from pixtral_decoder.engine.engine_args import EngineOptions
from pixtral_decoder.request import Prompt

DTYPES = ("bfloat16", "float32")
RUNS = 3
# Lower token ids are control tokens.
FIRST_WORD = 1000
# Name, concurrent answers, prompt tokens, answer tokens.
WORK = (
    ("a token of one answer", 1, 16, 64),
    ("a token of four answers", 4, 16, 64),
    ("a prompt token", 1, 1024, 1),
)


def core_seconds() -> float:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(each.cpu_times().user + each.cpu_times().system for each in processes)


async def measure(model_dir: Path, dtype: str) -> None:
    # The decoder's process does the same.
    torch.set_num_threads(1)
    words = int(read_params(model_dir)["vocab_size"]) - FIRST_WORD
    engine = DecoderEngine(
        EngineOptions(
            model_dir, "float32" if dtype == "float32" else "bfloat16", context_length=4096
        )
    )
    await engine.start()

    async def answer(number: int, length: int, tokens: int) -> None:
        # Every prompt begins differently, so the prefix cache never helps.
        ids = [1, *(FIRST_WORD + (number * 37 + at) % words for at in range(length))]
        sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        prompt = Prompt(f"{number}", ids, (), sampling)
        async with aclosing(engine.generate(prompt, ())) as deltas:
            async for _ in deltas:
                pass

    number = 0
    for name, at_once, length, tokens in WORK:
        took, cores = [], []
        for _ in range(RUNS + 1):
            numbers = range(number, number + at_once)
            number += at_once
            began, used = time.perf_counter(), core_seconds()
            await asyncio.gather(*(answer(each, length, tokens) for each in numbers))
            took.append(time.perf_counter() - began)
            cores.append(core_seconds() - used)
        # The first run warms up.
        each = at_once * tokens if tokens > 1 else length
        clock, busy = (statistics.median(times[1:]) / each * 1e3 for times in (took, cores))
        print(f"{dtype:9} {name:24} {clock:8.3f} ms, {busy:8.3f} ms of cores", flush=True)
    await engine.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.decoder_dtypes", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, help="measure only this one, in this process")
    given = parser.parse_args()
    if given.dtype is not None:
        asyncio.run(measure(given.model_dir, given.dtype))
        return
    chosen = "float32" if imitates_bfloat16() else "bfloat16"
    print(f"a decoder takes {chosen} for bf16 on this CPU", flush=True)
    for dtype in DTYPES:
        command = [sys.executable, "-m", "bench.decoder_dtypes", str(given.model_dir)]
        subprocess.run([*command, "--dtype", dtype], cwd=ROOT, env=os.environ, check=True)


if __name__ == "__main__":
    main()
