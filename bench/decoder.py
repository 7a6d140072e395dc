"""Compares the decoder's engine with stock vLLM of the same version on one machine.

On a GPU, at Pixtral-12B's size with random weights (the times do not depend on the weights):

    python -m bench.decoder --out bench/results/decoder.json

On a CPU, with a small random checkpoint, to check that the benchmark runs:

    python -m bench.decoder --preset small

The engines run one after the other. Both have the same settings, except those that the decoder
sets itself: weights in bf16, 16,384 tokens of context, 64 requests at once. On a GPU they are
compiled and use CUDA graphs; with `--eager` and on a CPU they are not compiled. `--ours NAME=JSON`
and `--stock NAME=JSON` add arguments of vLLM's AsyncEngineArgs to one engine. `--steps 8192/1536`
limits our steps to 8,192 tokens, and to 1,536 while answers wait for the step. Repeat the flag to
measure several limits in one engine: on a GPU, each new first number takes about 45 s and each
new second number about 25 s.

Stock vLLM gets decoded images. Our engine reads embeddings from a real Redis. Both use the path
of their own server without the network, so neither spends time on encoding or parsing. The
benchmark needs vLLM with its dependencies, protobuf at least as new as the stubs in protos/ (their
header states the version), gRPC, redis-py and a redis-server. It starts two engines and measures
each for about a minute.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from bench.decoder_load import Plan
from bench.decoder_steps import DIAL, SCHEDULER, Steps, make_dial
from bench.decoder_table import table
from bench.module_path import OURS, ROOT, module_path
from bench.stock_vllm import prepare

SECONDS = 600.0

# params.json as published, with a context length, which vLLM otherwise looks for elsewhere.
PIXTRAL_12B: dict[str, Any] = {
    "dim": 5120,
    "n_layers": 40,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "rope_theta": 1e9,
    "norm_eps": 1e-5,
    "vocab_size": 131072,
    "max_position_embeddings": 131072,
    "vision_encoder": {
        "hidden_size": 1024,
        "num_channels": 3,
        "image_size": 1024,
        "patch_size": 16,
        "rope_theta": 1e4,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "adapter_bias": True,
        "image_token_id": 10,
    },
}
PLANS = {
    "pixtral-12b": Plan(
        alone=16,
        saturating=96,
        at_once=24,
        streams=32,
        arrivals=2.0,
        quiet_seconds=4.0,
        busy_seconds=16.0,
    ),
    "small": Plan(
        alone=4,
        saturating=24,
        at_once=6,
        streams=4,
        arrivals=1.0,
        quiet_seconds=2.0,
        busy_seconds=6.0,
    ),
}


def model(preset: str, directory: Path) -> Path:
    if preset == "small":
        from models.random_checkpoint import RandomSpec, write_random_checkpoint

        return write_random_checkpoint(directory, RandomSpec(dtype="bfloat16"))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "params.json").write_text(json.dumps(PIXTRAL_12B))
    tekken = resources.files("mistral_common") / "data" / "tekken_240911.json"
    (directory / "tekken.json").write_bytes(tekken.read_bytes())
    return directory


def plug_in(directory: Path) -> Path:
    """A folder for PYTHONPATH in which vLLM finds the plug-in without an installed project."""
    metadata = directory / "pixtral_serve_bench-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: pixtral-serve-bench\nVersion: 0\n"
    )
    (metadata / "entry_points.txt").write_text(
        "[vllm.general_plugins]\npixtral = pixtral_decoder.vllm_hooks.plugin:register\n"
    )
    return directory


def run_side(side: str, given: dict[str, Any], paths: list[Path], directory: Path) -> Any:
    plan, seen = directory / f"{side}-plan.json", directory / f"{side}-seen.json"
    plan.write_text(json.dumps({"side": side, **given}))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment |= module_path(*paths)
    if given["steps"]:
        environment[DIAL] = str(directory / "dial")
        make_dial(directory / "dial", Steps.parse(given["steps"][0]))
    environment["VLLM_PLUGINS"] = "pixtral" if side == "ours" else ""
    environment.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    command = [sys.executable, "-m", "bench.decoder_side", str(plan), str(seen)]
    print(f"{time.strftime('%H:%M:%S')} starting {side}", flush=True)
    subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=SECONDS)
    return json.loads(seen.read_text())


def dialled(steps: list[str]) -> dict[str, Any]:
    if not steps:
        return {}
    most = max(Steps.parse(each).most for each in steps)
    return {"scheduler_cls": SCHEDULER, "max_num_batched_tokens": most}


def arguments(given: list[str]) -> dict[str, Any]:
    pairs = (each.partition("=") for each in given)
    return {name: json.loads(value) for name, _, value in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.decoder",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--preset", choices=PLANS, default="pixtral-12b")
    parser.add_argument("--eager", action="store_true", help="no compilation, no CUDA graphs")
    parser.add_argument("--ours", action="append", default=[], metavar="NAME=JSON")
    parser.add_argument("--stock", action="append", default=[], metavar="NAME=JSON")
    parser.add_argument("--steps", action="append", default=[], metavar="MOST/AWAITED")
    parser.add_argument("--only", choices=("ours", "stock"), help="measure one engine only")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "decoder.json")
    options = parser.parse_args()
    is_small = options.preset == "small"
    common: dict[str, Any] = {"enforce_eager": options.eager or is_small}
    if not is_small:
        common["load_format"] = "dummy"
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_gpu()}",
        "preset": options.preset,
        "plan": asdict(PLANS[options.preset]),
    }
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        model_dir = model(options.preset, directory / "model")
        for side in [options.only] if options.only else ["ours", "stock"]:
            extra = [plug_in(directory / "plug-in")] if side == "ours" else []
            if side == "stock" and is_small:
                extra = [prepare()]
            steps = options.steps if side == "ours" else []
            given = {
                "model_dir": str(model_dir),
                "plan": report["plan"],
                "kv_cache_bytes": 1 << 30 if is_small else None,
                "steps": steps,
                "arguments": {**common, **dialled(steps), **arguments(getattr(options, side))},
            }
            seen = run_side(side, given, [*extra, *OURS], directory)
            each = seen.pop("steps", {"": {}})
            report |= {f"{side} {name}".strip(): seen | more for name, more in each.items()}
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


if __name__ == "__main__":
    main()
