"""Compares the decoder's answers with quantised checkpoints to those of stock vLLM.

Each published form in turn, small and random: stock vLLM answers from the files, then the decoder
does from the same files, and the greedy answers must be equal. Stock vLLM decides whether a form
runs on the device at all. The prompts' log-probabilities must be close to those of the plain model
with the weights that the file means, and far from those with the scales of one kind of layer left
out.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models.random_checkpoint import RandomSpec, write_random_checkpoint
from pixtral_decoder.engine.engine import DecoderEngine, EngineNotStarted
from pixtral_decoder.engine.engine_args import EngineOptions, engine_args
from tests.decoder.asked import LONG, TOKENS, Answer, Asked, apart, ask, expected, questions, word
from tests.support.quantised import FORMS, FP8_DYNAMIC, Form, plain, write_quantised

# Each layer has whole groups of 128 weights, and as many outputs as the kernels of a GPU take.
SPEC = RandomSpec(dim=256, hidden_dim=512, n_heads=4, n_kv_heads=2, head_dim=64, dtype="bfloat16")
CONTEXT = 8192
STEP_TOKENS = 8192
# Generous: another machine may be busy.
SECONDS = 1800.0
# The decoder's log-probabilities against the plain model's, as a share of their distance from those
# of a model with all scales of a layer alike. The plain model does not round activations. FP8
# rounds each by up to a sixteenth, which makes about a quarter of that distance, and INT8 rounds
# less.
SHARE = 0.5


class NotRunHere(Exception):
    """Stock vLLM does not run the form on this device, or far too slowly. The message says why, on
    one line."""


def stock_answers(
    model_dir: Path, asks: Sequence[Asked], image_id: int, arguments: dict[str, Any], scratch: Path
) -> list[list[int]]:
    """Raises NotRunHere if stock vLLM ends without an answer."""
    asked, answers = scratch / "questions", scratch / "answers"
    answers.unlink(missing_ok=True)
    prompts = [
        {"token_ids": each.token_ids, "images": [image.tensor for image in each.embeddings]}
        for each in asks
    ]
    torch.save(
        {"prompts": prompts, "image_id": image_id, "max_tokens": TOKENS, "arguments": arguments},
        asked,
    )
    module = "tests.decoder.stock_vllm"
    command = [sys.executable, "-m", module, str(model_dir), str(asked), str(answers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    if not answers.is_file():
        raise NotRunHere(_reason(done.stderr))
    told: list[list[int]] = json.loads(answers.read_text("utf-8"))
    return told


def _reason(log: str) -> str:
    """The exception with which a process ended."""
    lines = [line.strip() for line in log.splitlines() if line and not line.startswith(" ")]
    return next((line for line in reversed(lines) if "Error" in line), "no reason in its log")


def same_arguments(options: EngineOptions) -> dict[str, Any]:
    """The decoder's arguments that change a step's numbers, for stock vLLM."""
    ours = engine_args(options)
    names = (
        "dtype",
        "max_model_len",
        "max_num_batched_tokens",
        "kv_cache_memory_bytes",
        "gpu_memory_utilization",
        "distributed_executor_backend",
        "enforce_eager",
        "block_size",
    )
    return {name: value for name in names if (value := getattr(ours, name)) is not None}


async def our_answers(
    options: EngineOptions, asks: Sequence[Asked]
) -> tuple[list[list[int]], list[Answer]]:
    """The greedy answers, and those with the prompt's log-probabilities."""
    engine = DecoderEngine(options)
    try:
        await engine.start()
        greedy = [(await ask(engine, each, prompt_logprobs=None)).token_ids for each in asks]
        return greedy, [await ask(engine, each) for each in asks if len(each.token_ids) < LONG]
    finally:
        await engine.shutdown()


async def check(form: Form, scratch: Path) -> bool:
    """Whether the form is right. Raises NotRunHere."""
    if form is FP8_DYNAMIC and not torch.cuda.is_available():
        raise NotRunHere("vLLM has no kernel for it on a CPU, or only a very slow emulation")
    original = write_random_checkpoint(scratch / "original", SPEC)
    model_dir = scratch / "published"
    quantised = write_quantised(form, original, model_dir)
    meant = plain(original, {name: each.meant for name, each in quantised.items()})
    flat = plain(original, {name: each.flat for name, each in quantised.items()})
    asks = questions(original, meant)
    options = EngineOptions(
        model_dir,
        context_length=CONTEXT,
        kv_cache_bytes=1 << 29,
        gpu_memory_fraction=0.3,
        more={"enforce_eager": True, "max_num_batched_tokens": STEP_TOKENS},
    )
    began = time.monotonic()
    image_id = meant.vision["image_token_id"]
    stock = stock_answers(model_dir, asks, image_id, same_arguments(options), scratch)
    print(f"{form.name}: stock vLLM answered in {time.monotonic() - began:.0f} s", flush=True)
    began = time.monotonic()
    try:
        greedy, told = await our_answers(options, asks)
    except EngineNotStarted as error:
        print(f"NOT EQUAL: {form.name}: the decoder did not start: {error}", flush=True)
        return False
    print(f"{form.name}: the decoder answered in {time.monotonic() - began:.0f} s", flush=True)
    fine = True
    for each, ours, theirs in zip(asks, greedy, stock, strict=True):
        is_equal = ours == theirs
        pairs = zip(ours, theirs, strict=True)
        same = next((n for n, (a, b) in enumerate(pairs) if a != b), TOKENS)
        print(
            f"{'equal' if is_equal else 'NOT EQUAL'}: {form.name}, {each.name}: "
            f"{same} of {TOKENS} tokens",
            flush=True,
        )
        fine &= is_equal
    for each, answer in zip(asks, told, strict=False):
        own, others = apart(answer, expected(meant, each)), apart(answer, expected(flat, each))
        is_close = own < SHARE * others
        print(
            f"{word(is_close)}: {form.name}, {each.name}: logprobs apart {own:.3f} from the plain "
            f"model's, {others:.3f} from those with even scales",
            flush=True,
        )
        fine &= is_close
    return fine


async def run(directory: Path) -> bool:
    """Whether all forms that run here are right, and at least one does."""
    results: dict[str, bool] = {}
    for number, form in enumerate(FORMS):
        try:
            results[form.name] = await check(form, directory / str(number))
        except NotRunHere as error:
            print(f"not run here: {form.name} ({error})", flush=True)
    right = [name for name, fine in results.items() if fine]
    wrong = [name for name, fine in results.items() if not fine]
    missing = [form.name for form in FORMS if form.name not in results]
    for what, names in (("equal", right), ("NOT equal", wrong), ("not run here", missing)):
        if names:
            print(f"{what}: {', '.join(names)}")
    return bool(right) and not wrong
