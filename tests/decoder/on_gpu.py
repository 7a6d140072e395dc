"""A real engine on a GPU, held against the plain model: quickly, and with little.

    python -m tests.decoder.on_gpu
    python -m tests.decoder.on_gpu --family

Small random checkpoints; prompts of text and of an image. First in float32: greedy answers and the
prompt's log-probabilities, also of a prompt of several steps, and the first token after large
steps. Then in bfloat16, which vLLM's LoRA kernels need, two adapters and none of them in the same
steps. And in each an answer of a structure with characters of several tokens. It needs vLLM with
all that it depends on, and neither pytest, gRPC nor Redis; it runs on a CPU, too. Ends with 1 where
something differs.

With `--family` it compares the decoder's greedy answers with checkpoints of each published
quantised form to stock vLLM's (tests/decoder/family.py), and names the forms that the device does
not run.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

import torch

from models.random_checkpoint import RandomSpec, write_random_checkpoint
from pixtral_core.generation.sampling import Sampling, Structure, StructuredOutput
from pixtral_decoder.engine.engine import DecoderEngine
from pixtral_decoder.engine.engine_args import EngineOptions
from pixtral_decoder.request import Prompt
from tests.decoder import family
from tests.decoder.asked import TOKENS, Answer, Asked, alike, apart, ask, expected, questions, word
from tests.decoder.lora import write_adapter
from tests.support.reference import Reference

SPELT = "é🙂"
# The difference that most of a prompt's log-probabilities may have in float32. On a GPU, where
# Triton's attention multiplies it in TF32, by more, and a random model's tokens may then change
# places. In bfloat16 they move by more again, and another model's by much more.
CLOSE = 0.01
CLOSE_IN_TF32 = 0.05
SHARE_OF_ANOTHERS = 0.2


def is_plain(name: str, answer: Answer, wanted: Answer) -> bool:
    by, same = apart(answer, wanted), alike(answer, wanted)
    is_gpu = torch.cuda.is_available()
    fine = by < CLOSE_IN_TF32 if is_gpu else by < CLOSE and same == TOKENS
    print(f"{word(fine)}: {name}: logprobs apart {by:.4f}, {same} of {TOKENS} tokens", flush=True)
    return fine


def is_its_own(name: str, adapter: str, answer: Answer, wanted: Mapping[str, Answer]) -> bool:
    """Whether it is this adapter's answer among those of the models."""
    by = {other: apart(answer, each) for other, each in wanted.items()}
    own = by.pop(adapter)
    fine = own < SHARE_OF_ANOTHERS * min(by.values())
    same = alike(answer, wanted[adapter])
    others = ", ".join(f"{value:.2f}" for value in by.values())
    print(
        f"{word(fine)}: {name}: logprobs apart {own:.2f} (from the others: {others}), "
        f"{same} of {TOKENS} tokens",
        flush=True,
    )
    return fine


async def is_spelt(engine: DecoderEngine) -> bool:
    """Whether an answer can be held to characters of several tokens."""
    held = StructuredOutput(Structure.CHOICE, (SPELT,))
    sampling = Sampling(max_tokens=TOKENS, temperature=0.0, structured_output=held)
    prompt = Prompt("spelt", [1, 3, 5000, 4], (), sampling, "salt")
    async with aclosing(engine.generate(prompt, ())) as deltas:
        text = "".join([delta.text async for delta in deltas])
    print(f"{word(text == SPELT)}: held to {SPELT}: {text}", flush=True)
    return text == SPELT


async def is_plain_after_large_steps(
    engine: DecoderEngine, reference: Reference, asked: Asked
) -> bool:
    # No log-probabilities of the prompt, for which steps are small.
    sampling = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True, logprobs=0)
    prompt = Prompt("large steps", asked.token_ids, (), sampling, "another salt")
    async with aclosing(engine.generate(prompt, ())) as deltas:
        told = [each.chosen async for delta in deltas for each in delta.logprobs if each.chosen]
    (chosen,) = told
    (row,) = reference.logprobs(asked.token_ids, [], [chosen.token_id])
    by = abs(chosen.logprob - float(row[chosen.token_id]))
    fine = by < (CLOSE_IN_TF32 if torch.cuda.is_available() else CLOSE)
    print(f"{word(fine)}: after large steps: logprob apart {by:.4f}", flush=True)
    return fine


async def check(
    model_dir: Path, adapters: dict[str, Path], models: dict[str, Reference], more: dict[str, Any]
) -> bool:
    dtype: Literal["bfloat16", "float32"] = "bfloat16" if adapters else "float32"
    options = EngineOptions(
        model_dir,
        dtype=dtype,
        context_length=8192,
        kv_cache_bytes=1 << 30,
        gpu_memory_fraction=0.3,
        adapters=adapters,
        more=more,
    )
    engine = DecoderEngine(options)
    began = time.monotonic()
    fine = True
    try:
        await engine.start()
        print(f"{dtype}: started in {time.monotonic() - began:.0f} s", flush=True)
        asks = questions(model_dir, models[""])
        for asked in asks:
            # Together, so that requests for several adapters are in the same steps.
            answers = await asyncio.gather(*(ask(engine, asked, name) for name in models))
            wanted = {name: expected(model, asked) for name, model in models.items()}
            for name, answer in zip(models, answers, strict=True):
                named = f"{dtype}, {asked.name}, {name or 'no adapter'}"
                if adapters:
                    fine &= is_its_own(named, name, answer, wanted)
                else:
                    fine &= is_plain(named, answer, wanted[name])
        if not adapters:
            fine &= await is_plain_after_large_steps(engine, models[""], asks[-1])
        fine &= await is_spelt(engine)
    finally:
        await engine.shutdown()
    return fine


async def run(directory: Path, more: dict[str, Any]) -> bool:
    model_dir = write_random_checkpoint(directory / "float32", RandomSpec())
    fine = await check(model_dir, {}, {"": Reference(model_dir)}, more)
    model_dir = write_random_checkpoint(directory / "bfloat16", RandomSpec(dtype="bfloat16"))
    models = {"": Reference(model_dir)}
    adapters = {name: directory / name for name in ("poet", "clerk")}
    for seed, (name, path) in enumerate(adapters.items(), start=1):
        models[name] = Reference(model_dir)
        write_adapter(path, models[name], seed)
    return await check(model_dir, adapters, models, more) and fine


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.decoder.on_gpu",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--eager", action="store_true", help="nothing compiled, no CUDA graphs")
    parser.add_argument(
        "--family",
        action="store_true",
        help="instead: checkpoints of each published quantised form, against stock vLLM",
    )
    arguments = parser.parse_args()
    more = {"enforce_eager": True} if arguments.eager else {}
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.family:
            sys.exit(0 if asyncio.run(family.run(Path(scratch))) else 1)
        fine = asyncio.run(run(Path(scratch), more))
    print("all close" if fine else "NOT all close")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
