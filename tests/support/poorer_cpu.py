"""Runs code as on a CPU without bfloat16 instructions."""

import os
import platform
import subprocess
import sys

import pytest

needs_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the variable names an x86 CPU"
)


def printed(code: str) -> str:
    """The output of Python code that sees a CPU without bfloat16 instructions."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return done.stdout.strip()
