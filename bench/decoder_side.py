"""Runs one engine of `bench.decoder` in its own process.

python -m bench.decoder_side PLAN.json SEEN.json
"""

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from bench.decoder_load import Load, Plan
from bench.decoder_pieces import pieces
from bench.decoder_sides import SIDE_PX, Ours, Side, Stock
from bench.decoder_steps import Dial, Steps
from pixtral_core.model.vision_spec import VisionSpec, read_params


async def run(given: dict[str, Any]) -> dict[str, Any]:
    model_dir = Path(given["model_dir"])
    params = read_params(model_dir)
    spec = VisionSpec.from_params(params)
    make = Ours if given["side"] == "ours" else Stock
    side: Side = make(model_dir, spec, given["kv_cache_bytes"], given["arguments"])
    began = time.monotonic()
    await side.start()
    # Both servers do the same once they are ready.
    gc.collect()
    gc.freeze()
    started = time.monotonic()
    try:
        load = Load(side, spec, Plan(**given["plan"]))
        await load.warm_up()
        seen: dict[str, Any] = {"prompt_tokens": load.prompt_tokens, "settings": _settings(side)}
        if given["steps"]:
            seen["steps"] = await by_steps(load, [Steps.parse(each) for each in given["steps"]])
        else:
            seen |= await load.prompts() | await load.answers()
    finally:
        await side.close()
    seen["start_seconds"] = started - began
    seen["measured_seconds"] = time.monotonic() - started
    if isinstance(side, Ours):
        grid = spec.grid(SIDE_PX, SIDE_PX)
        seen["handing_ms"] = await pieces(spec, int(params["dim"]), grid.tokens)
    return seen


async def by_steps(load: Load, several: list[Steps]) -> dict[str, Any]:
    """Measures every size of a step, and repeats no measurement that depends on one number only."""
    dial = Dial()
    prompts: dict[int, dict[str, Any]] = {}
    answers: dict[int, dict[str, Any]] = {}
    for steps in several:
        dial.turn(steps)
        if steps.most not in prompts:
            prompts[steps.most] = await load.prompts()
        if steps.awaited not in answers:
            answers[steps.awaited] = await load.answers()
    return {str(steps): prompts[steps.most] | answers[steps.awaited] for steps in several}


def _settings(side: Side) -> dict[str, Any]:
    import vllm

    engine = getattr(side.engine, "_llm", side.engine)
    config = engine.vllm_config
    return {
        "vllm": vllm.__version__,
        "enforce_eager": config.model_config.enforce_eager,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "async_scheduling": config.scheduler_config.async_scheduling,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "kv_cache_tokens": (config.cache_config.num_gpu_blocks or 0)
        * config.cache_config.block_size,
    }


if __name__ == "__main__":
    plan, seen_path = map(Path, sys.argv[1:])
    result = uvloop.run(run(json.loads(plan.read_text())))
    seen_path.write_text(json.dumps(result))
