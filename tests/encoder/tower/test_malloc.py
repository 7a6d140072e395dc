"""Memory that the tower frees on a CPU is there for its next layer."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[3] / "models" / "pixtral-mini"

# A process of its own: malloc's settings are the whole process's.
PROGRAM = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, torch
from pixtral_core.model.checkpoint import read_spec
from pixtral_encoder.tower import malloc
from pixtral_encoder.tower.weights import load_tower

malloc.keep_what_is_freed()
model = Path(sys.argv[1])
spec = read_spec(model)
tower = load_tower(model, spec, dtype=torch.float32, device=torch.device("cpu"))
size = spec.max_image_size
images = [tower.stage(np.zeros((spec.channels, size, size), np.float32))] * 16
with ThreadPoolExecutor(1) as pool:
    for _ in range(4):
        pool.submit(tower.embed, images).result()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        pool.submit(tower.embed, images).result()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 4)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's heap")
def test_a_batch_hardly_asks_the_system_for_memory() -> None:
    command = [sys.executable, "-c", PROGRAM, str(MODEL)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    # Pages. glibc's default has it ask for 1,500 to 16,000.
    assert int(ran.stdout) < 1000
