"""Memory that the tower frees on a CPU is there for its next layer."""

import platform
import subprocess
import sys

import pytest

# A process of its own: malloc's settings are the whole process's. The memory is taken and freed as
# a layer's results are, in a thread as the tower's is.
PROGRAM = """
import ctypes, resource, sys
from concurrent.futures import ThreadPoolExecutor
from pixtral_encoder.tower import malloc

if sys.argv[1] == "kept":
    malloc.keep_what_is_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
SIZE = 20 << 20

def layer():
    results = [libc.malloc(SIZE) for _ in range(8)]
    for result in results:
        ctypes.memset(result, 1, SIZE)
    for result in results:
        libc.free(result)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

with ThreadPoolExecutor(1) as pool:
    pool.submit(layer).result()
    before = faults()
    pool.submit(layer).result()
    print(faults() - before)
"""


def pages_asked_for(setting: str) -> int:
    """In a layer that takes 40,960 pages, as the one before it did."""
    command = [sys.executable, "-c", PROGRAM, setting]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's heap")
def test_a_layer_hardly_asks_the_system_for_memory() -> None:
    assert pages_asked_for("kept") < 100
    # Once this fails, glibc's defaults do it, and the setting may go.
    assert pages_asked_for("default") > 10_000
