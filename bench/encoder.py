"""The speed of the vision tower alone, with random weights or those of a model directory.

    python -m bench.encoder [--device cuda] [--dtype bfloat16] [--fp8]
        [--peers transformers vllm] [--model-dir DIR]

Random weights have Pixtral-12B's shapes. For 1 to 64 images of three mixes it prints images a
second, milliseconds an image, the rate of the arithmetic that they need, and that rate as a share
of what a large matrix product reaches in the same run. Batches are those of the encoder. Other
implementations with the same weights run by turns in the same process; with --fp8, so does the
same tower with 8-bit products. For each it prints how near its embeddings are to ours.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.peer_towers import Embed, transformers_tower, vllm_tower
from pixtral_core.model.checkpoint import read_spec
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_encoder.tower import fp8, malloc
from pixtral_encoder.tower.compute_dtype import compute_dtype
from pixtral_encoder.tower.tower import VisionTower, tensor_shapes
from pixtral_encoder.tower.weights import load_weights

PIXTRAL_12B = VisionSpec.from_params(
    {
        "vision_encoder": {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "rope_theta": 1e4,
            "patch_size": 16,
            "image_size": 1024,
            "image_token_id": 10,
        }
    }
)
BATCH_PATCHES = 16_384
SECONDS = 1.5
Size = tuple[int, int]
# Heights and widths after the resize of a model with this tower: cameras and phones, portrait and
# landscape, and smaller images from the web.
PHOTOS: Sequence[Size] = (
    (768, 1024), (1024, 768), (688, 1024), (576, 1024), (1024, 576), (480, 640), (1024, 1024),
    (608, 800), (768, 1024), (1024, 688), (400, 608), (512, 512), (1024, 464), (336, 1024),
    (720, 960), (1024, 768),
)  # fmt: skip
THUMBNAILS: Sequence[Size] = ((64, 64), (96, 128), (128, 128), (160, 224), (128, 96), (224, 224))
MIXES: dict[str, Sequence[Size]] = {
    "1024x1024": ((1024, 1024),),
    "photos": PHOTOS,
    "thumbnails": THUMBNAILS,
}


def operations(spec: VisionSpec, size: Size) -> float:
    """Floating-point operations that an image needs; `size` is (height, width) in pixels."""
    patches = size[0] * size[1] / spec.patch_size**2
    matrices = spec.width * (4 * spec.width + 3 * spec.intermediate_size)
    attention = 2 * patches * spec.width
    first = spec.channels * spec.patch_size**2 * spec.width
    return 2 * patches * (spec.layers * (matrices + attention) + first)


def median_seconds(call: Callable[[], object], device: torch.device) -> float:
    """The median of the calls in SECONDS, after two that warm up."""

    def once() -> float:
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    expected = min(once(), once())
    return statistics.median(once() for _ in range(max(3, int(SECONDS / expected))))


def median_seconds_by_turns(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """The median seconds of each call; on a CPU by turns, so that other work slows all alike."""
    if device.type == "cuda":
        return {name: median_seconds(call, device) for name, call in calls.items()}
    took: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    ends = time.perf_counter() + SECONDS * len(calls)
    while time.perf_counter() < ends or min(map(len, took.values())) < 3:
        for name, call in calls.items():
            began = clock()
            call()
            took[name].append(clock() - began)
    return {name: statistics.median(times) for name, times in took.items()}


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square product of random matrices."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return float(2 * side**3 / median_seconds(lambda: a @ b, device))


def random_weights(
    device: torch.device, dtype: torch.dtype, spec: VisionSpec = PIXTRAL_12B
) -> dict[str, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return {
        name: torch.ones(shape, device=device, dtype=dtype)
        if len(shape) == 1
        else (
            torch.randn(shape, device=device, generator=generator) * shape[1:].numel() ** -0.5
        ).to(dtype)
        for name, shape in ((n, torch.Size(s)) for n, s in tensor_shapes(spec).items())
    }


def batches(sizes: Sequence[Size], spec: VisionSpec) -> Iterator[list[int]]:
    """Indexes of the images of each batch, in order, up to BATCH_PATCHES."""
    batch: list[int] = []
    room = BATCH_PATCHES
    for at, (height, width) in enumerate(sizes):
        patches = height * width // spec.patch_size**2
        if batch and patches > room:
            yield batch
            batch, room = [], BATCH_PATCHES
        batch.append(at)
        room -= patches
    yield batch


def ours(tower: VisionTower, sizes: Sequence[Size], spec: VisionSpec) -> Callable[[], list[Tensor]]:
    """Embeds images of these sizes that are on the device already."""
    staged = [tower.stage(image.cpu().numpy()) for image in images_of(sizes, tower.device)]

    def embed() -> list[Tensor]:
        parts = [tower.embed([staged[at] for at in batch]) for batch in batches(sizes, spec)]
        return [embedding for part in parts for embedding in part]

    return embed


def peer(
    embed: Embed, sizes: Sequence[Size], spec: VisionSpec, device: torch.device
) -> Callable[[], list[Tensor]]:
    images = images_of(sizes, device)

    def embed_all() -> list[Tensor]:
        parts = [embed([images[at] for at in batch]) for batch in batches(sizes, spec)]
        return [embedding for part in parts for embedding in part]

    return embed_all


def fitted(size: Size, spec: VisionSpec) -> Size:
    """(height, width) after the resize of a model with these parameters."""
    width, height = spec.resized(spec.grid(size[1], size[0]))
    return height, width


def images_of(sizes: Sequence[Size], device: torch.device) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(1)
    return [torch.randn(3, *size, device=device, generator=generator) for size in sizes]


def nearness(found: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The least cosine between the two embeddings of an image."""
    return min(
        float(torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))
        for a, b in zip(found, reference, strict=True)
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _as(dtype: torch.dtype, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.encoder", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--peers", nargs="*", default=[], choices=("transformers", "vllm"))
    parser.add_argument("--counts", nargs="*", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--mixes", nargs="*", default=[*MIXES], choices=MIXES)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="on a CPU that others use too: count CPU seconds, not wall time",
    )
    parser.add_argument("--fp8", action="store_true", help="also measure 8-bit products")
    parser.add_argument(
        "--model-dir", type=Path, help="measure this model in place of a random Pixtral-12B"
    )
    parser.add_argument("--layers", type=int, help="layers of the random tower (24 by default)")
    parser.add_argument("--enforce-eager", action="store_true", help="do not compile the tower")
    given = parser.parse_args()
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    is_gpu = device.type == "cuda"
    if not is_gpu:
        # The encoder's process does the same, and here it helps the peers too.
        malloc.keep_what_is_freed()
    on = torch.cuda.get_device_name() if is_gpu else f"cpu, {torch.get_num_threads()} threads"
    # The encoder's process chooses its dtype by the same function.
    computes_in = dtype if given.fp8 else compute_dtype(dtype, device)
    rate = matrix_rate(device, computes_in)
    print(
        f"{on}, torch {torch.__version__}, {given.dtype}, ours computed in {_name(computes_in)}: "
        f"{rate / 1e12:.2f} TFLOP/s of matrices"
    )
    if given.model_dir is not None:
        spec = read_spec(given.model_dir)
        weights = load_weights(
            given.model_dir, spec, dtype=dtype, device=device, computes_in=computes_in
        )
    else:
        spec = replace(PIXTRAL_12B, layers=given.layers or PIXTRAL_12B.layers)
        made = random_weights(device, dtype, spec)
        weights = {name: tensor.to(computes_in) for name, tensor in made.items()}
    if given.fp8 and not fp8.is_possible(device):
        raise SystemExit("this GPU has no products in 8 bits")
    is_compiled = is_gpu and not given.enforce_eager
    towers = {
        name: VisionTower(
            spec,
            weights,
            embedding_dtype=dtype,
            is_compiled=is_compiled,
            is_fp8=name == "ours, fp8",
        )
        for name in ("ours", "ours, fp8")[: 1 + given.fp8]
    }
    for name, tower in towers.items():
        began = time.perf_counter()
        tower.prepare()
        print(f"{name}: prepared in {time.perf_counter() - began:.1f} s", flush=True)
    with ExitStack() as stack:
        peers: dict[str, Embed] = {}
        if "transformers" in given.peers:
            # A CPU may take either; a GPU has no reason for float32.
            for each in (dtype,) if is_gpu else (torch.bfloat16, torch.float32):
                peers[f"transformers {_name(each)}"] = transformers_tower(spec, _as(each, weights))
        if "vllm" in given.peers:
            peers["vllm"] = vllm_tower(spec, _as(dtype, weights), stack)
        clock = time.process_time if given.cpu_time else time.perf_counter
        for mix in given.mixes:
            some = MIXES[mix]
            for count in given.counts:
                sizes = [fitted(some[at % len(some)], spec) for at in range(count)]
                needed = sum(operations(spec, size) for size in sizes)
                calls = {name: ours(tower, sizes, spec) for name, tower in towers.items()}
                for name, theirs in peers.items():
                    calls[name] = peer(theirs, sizes, spec, device)
                seconds = median_seconds_by_turns(calls, device, clock)
                reference = calls["ours"]()
                near = {
                    name: nearness(call(), reference)
                    for name, call in calls.items()
                    if name != "ours"
                }
                for name, took in seconds.items():
                    said = f"{mix:>10} {count:3} {name:>21}: {count / took:7.1f} images/s"
                    said += f", {took / count * 1e3:7.2f} ms an image"
                    said += f", {needed / took / 1e12:6.1f} TFLOP/s, {needed / took / rate:4.0%}"
                    if name in near:
                        said += f", ours {took / seconds['ours']:.2f}x, cosine {near[name]:.5f}"
                    print(said, flush=True)


if __name__ == "__main__":
    main()
