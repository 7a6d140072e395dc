"""From process start to the first token, with a checkpoint of Pixtral-12B's full size.

    python -m bench.start_times
    python -m bench.start_times --model-dir .cache/random-pixtral    # a small one, on a CPU

Writes 25 GB of random weights, and starts the whole stack twice. The first start is cold: no
compiled kernels are kept from before, and the system has none of the file in its memory, where it
lets this process drop it. The second one finds both. Prints when each tier is ready, and when the
first token of a text and of an image have come, in seconds since the first process began.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

import pixtral_cli
from bench.compare import WORKERS
from bench.decoder import PIXTRAL_12B, model, plug_in
from bench.encoder import random_weights
from bench.module_path import ROOT, module_path
from bench.one_card_report import about_run
from bench.pictures import jpeg
from pixtral_cli.stack.process_stack import Progress
from pixtral_client import Client

FILE = "start_times.json"
KV_CACHE_BYTES = 10 * 10**9
# vLLM keeps compiled kernels in the first one, and PyTorch and Triton in the others.
CACHES = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def language_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the language model's tensors, as the published file has them."""
    dim, hidden = PIXTRAL_12B["dim"], PIXTRAL_12B["hidden_dim"]
    head, vocabulary = PIXTRAL_12B["head_dim"], PIXTRAL_12B["vocab_size"]
    queries, keys = PIXTRAL_12B["n_heads"] * head, PIXTRAL_12B["n_kv_heads"] * head
    yield "tok_embeddings.weight", (vocabulary, dim)
    yield "output.weight", (vocabulary, dim)
    yield "norm.weight", (dim,)
    width = PIXTRAL_12B["vision_encoder"]["hidden_size"]
    yield "vision_language_adapter.w_in.weight", (dim, width)
    yield "vision_language_adapter.w_in.bias", (dim,)
    yield "vision_language_adapter.w_out.weight", (dim, dim)
    yield "vision_language_adapter.w_out.bias", (dim,)
    for layer in range(PIXTRAL_12B["n_layers"]):
        at = f"layers.{layer}"
        yield f"{at}.attention.wq.weight", (queries, dim)
        yield f"{at}.attention.wk.weight", (keys, dim)
        yield f"{at}.attention.wv.weight", (keys, dim)
        yield f"{at}.attention.wo.weight", (dim, queries)
        yield f"{at}.feed_forward.w1.weight", (hidden, dim)
        yield f"{at}.feed_forward.w2.weight", (dim, hidden)
        yield f"{at}.feed_forward.w3.weight", (hidden, dim)
        yield f"{at}.attention_norm.weight", (dim,)
        yield f"{at}.ffn_norm.weight", (dim,)


def write_checkpoint(directory: Path) -> Path:
    """Pixtral-12B's numbers and tokenizer with random weights in bfloat16: 25 GB."""
    model("pixtral-12b", directory)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tensors = {name: each.cpu() for name, each in random_weights(device, torch.bfloat16).items()}
    for name, shape in language_shapes():
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.0
        values = torch.randn(shape, device=device, dtype=torch.bfloat16) * scale
        tensors[name] = (values if len(shape) > 1 else values + 1).cpu()
    save_file(tensors, directory / "consolidated.safetensors")
    return directory


def drop_file_cache() -> bool:
    """Whether the system has let go of the files that it holds in memory."""
    os.sync()
    try:
        DROP_CACHES.write_text("1")
    except OSError:
        return False
    return True


def start(model_dir: Path, caches: Path, logs: Path, decoder_args: list[str]) -> dict[str, float]:
    """Seconds since the first process began, by what they led to."""
    for name in CACHES:
        os.environ[name] = str(caches / name.lower())
    began = time.perf_counter()
    seconds: dict[str, float] = {}

    def ready(progress: Progress) -> None:
        if progress.state == "ready":
            seconds[f"{progress.name} ready"] = time.perf_counter() - began

    with pixtral_cli.pixtral_stack(
        model_dir,
        decoder_args=decoder_args,
        gateway_args=["--workers", str(WORKERS)],
        log_dir=logs,
        progress=ready,
    ) as stack:
        seconds["the stack ready"] = time.perf_counter() - began
        with Client(stack.target) as client:
            for what, content in (("a text", "Hello?"), ("an image", [jpeg(1), "And this?"])):
                asked = time.perf_counter()
                with client.stream([{"role": "user", "content": content}], max_tokens=1) as stream:
                    for _ in stream:
                        pass
                seconds[f"first token of {what}"] = time.perf_counter() - began
                seconds[f"of which for {what}"] = time.perf_counter() - asked
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.start_times",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "start_times")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model_dir = args.model_dir
        if model_dir is None:
            began = time.perf_counter()
            model_dir = write_checkpoint(directory / "model")
            print(f"wrote the checkpoint in {time.perf_counter() - began:.0f} s", flush=True)
            os.environ |= module_path(plug_in(directory / "plug-in"))
        found: dict[str, dict[str, float]] = {}
        for name in ("cold", "warm"):
            if name == "cold" and not drop_file_cache():
                print("the system keeps the file in its memory: not cold in that", flush=True)
            flags = [] if args.model_dir else ["--kv-cache-bytes", str(KV_CACHE_BYTES)]
            found[name] = start(model_dir, directory / "caches", args.out / name, flags)
            for what, seconds in found[name].items():
                print(f"{name}: {what}: {seconds:.1f} s", flush=True)
            text = json.dumps({"about": about_run("bench.start_times"), "starts": found}, indent=1)
            (args.out / FILE).write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
