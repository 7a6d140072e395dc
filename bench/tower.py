"""How fast the vision tower is, with random weights of Pixtral-12B's numbers and nothing around it.

    python -m bench.tower [--device cuda] [--dtype bfloat16] [--size 1024]

Prints, for each batch, milliseconds an image, the rate of the arithmetic that it needs, that rate
as a share of what a large matrix product reaches in the same run, and the memory that the batch
takes beside the weights.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from embeddings.vision import VisionSpec
from services.encoder.tower import VisionTower, tensor_shapes

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
THUMBNAIL = 64
SECONDS = 2.0


def operations(spec: VisionSpec, size: tuple[int, int]) -> float:
    """Floating-point operations that an image of (height, width) pixels needs."""
    patches = size[0] * size[1] / spec.patch_size**2
    matrices = spec.width * (4 * spec.width + 3 * spec.intermediate_size)
    attention = 2 * patches * spec.width
    first = spec.channels * spec.patch_size**2 * spec.width
    return 2 * patches * (spec.layers * (matrices + attention) + first)


def median_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of a call, in SECONDS of calls after those that warm up."""

    def once() -> float:
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    expected = min(once(), once())
    return statistics.median(once() for _ in range(max(3, int(SECONDS / expected))))


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square product of random matrices."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return float(2 * side**3 / median_seconds(lambda: a @ b, device))


def random_tower(device: torch.device, dtype: torch.dtype) -> VisionTower:
    weights = {
        name: torch.ones(shape, device=device, dtype=dtype)
        if len(shape) == 1
        else torch.randn(shape, device=device, dtype=dtype) * shape[-1] ** -0.5
        for name, shape in tensor_shapes(PIXTRAL_12B).items()
    }
    return VisionTower(PIXTRAL_12B, weights)


def random_images(sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
    return [torch.randn(3, *size, device=device) for size in sizes]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.tower", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--size", type=int, default=1024, help="of a square image, in pixels")
    given = parser.parse_args()
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    size, small = (given.size, given.size), (THUMBNAIL, THUMBNAIL)
    on = torch.cuda.get_device_name() if device.type == "cuda" else f"{device.type}"
    rate = matrix_rate(device, dtype)
    print(f"{on}, torch {torch.__version__}, {given.dtype}: {rate / 1e12:.1f} TFLOP/s of matrices")
    tower = random_tower(device, dtype)
    batches = {
        "1": [size],
        "4": [size] * 4,
        "16": [size] * 16,
        f"1 and 64 of {THUMBNAIL}": [size, *[small] * 64],
        "3 of unlike widths": [(size[0], size[1] // part // 16 * 16) for part in (1, 2, 3)],
    }
    for name, sizes in batches.items():
        images = random_images(sizes, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        seconds = median_seconds(lambda images=images: tower.embed(images), device)  # type: ignore[misc]
        needed = sum(operations(PIXTRAL_12B, each) for each in sizes)
        line = f"{name:>20}: {seconds * 1e3:8.2f} ms, {seconds / len(sizes) * 1e3:7.2f} an image"
        line += f", {needed / seconds / 1e12:6.1f} TFLOP/s, {needed / seconds / rate:4.0%}"
        if device.type == "cuda":
            line += f", {(torch.cuda.max_memory_allocated() - held) / 1e9:.2f} GB"
        print(line, flush=True)


if __name__ == "__main__":
    main()
