"""The memory that one batch needs, beside the formula of docs/performance.md.

    python -m bench.encoder_memory [--device cuda] [--patches 2048 4096 8192 16384]

The tower has random weights of Pixtral-12B's shapes and two layers: a layer reuses the memory of
the one before it. It is not compiled. On a GPU the figure is torch's own account, on a CPU the peak
of the process's resident memory, which Linux allows to reset.
"""

import argparse
import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench.encoder import PIXTRAL_12B, images_of, random_weights
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_encoder.tower.tower import Staged, VisionTower

SIDE = 256


def formula(spec: VisionSpec, dtype: torch.dtype) -> int:
    """The most bytes that each patch of a batch needs."""
    w, inner = spec.width, spec.intermediate_size
    feed_forward = dtype.itemsize * (8 * w + 4 * inner)
    rotating = dtype.itemsize * 12 * w + 4 * 6 * w
    return max(feed_forward, rotating)


def peak_bytes(tower: VisionTower, images: Sequence[Staged]) -> int:
    """Bytes at the peak of a run, less those before it."""
    gc.collect()
    if tower.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        tower.embed(images)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    tower.embed(images)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.encoder_memory", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--patches", nargs="*", type=int, default=[2048, 4096, 8192, 16_384])
    given = parser.parse_args()
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    spec = replace(PIXTRAL_12B, layers=2)
    tower = VisionTower(spec, random_weights(device, dtype, spec))
    each = (SIDE // spec.patch_size) ** 2
    image = tower.stage(images_of([(SIDE, SIDE)], device)[0].cpu().numpy())
    tower.embed([image])
    said = formula(spec, dtype)
    for patches in given.patches:
        peak = peak_bytes(tower, [image] * (patches // each))
        print(
            f"{patches:6} patches: {peak / 1e6:7.1f} MB, {peak / patches / 1e3:5.1f} kB a patch; "
            f"the formula says {said / 1e3:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
