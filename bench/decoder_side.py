"""One engine of `bench.decoder`, in a process of its own that ends with it.

python -m bench.decoder_side PLAN.json SEEN.json
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from bench.decoder_load import Plan, measure
from bench.decoder_pieces import pieces
from bench.decoder_sides import SIDE_PX, Ours, Side, Stock
from embeddings.vision import VisionSpec, read_params


async def run(given: dict[str, Any]) -> dict[str, Any]:
    model_dir = Path(given["model_dir"])
    params = read_params(model_dir)
    spec = VisionSpec.from_params(params)
    make = Ours if given["side"] == "ours" else Stock
    side: Side = make(model_dir, spec, given["kv_cache_bytes"], given["arguments"])
    began = time.monotonic()
    await side.start()
    started = time.monotonic()
    try:
        seen = await measure(side, spec, Plan(**given["plan"]))
        seen["settings"] = _settings(side)
    finally:
        await side.close()
    seen["start_seconds"] = started - began
    seen["measured_seconds"] = time.monotonic() - started
    if given["side"] == "ours":
        grid = spec.grid(SIDE_PX, SIDE_PX)
        seen["handing_ms"] = pieces(spec, int(params["dim"]), grid.tokens)
    return seen


def _settings(side: Side) -> dict[str, Any]:
    import vllm

    engine = getattr(side.engine, "_llm", side.engine)
    config = engine.vllm_config
    return {
        "vllm": vllm.__version__,
        "enforce_eager": config.model_config.enforce_eager,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "kv_cache_tokens": (config.cache_config.num_gpu_blocks or 0)
        * config.cache_config.block_size,
    }


if __name__ == "__main__":
    plan, seen_path = map(Path, sys.argv[1:])
    result = asyncio.run(run(json.loads(plan.read_text())))
    seen_path.write_text(json.dumps(result))
