"""Runs `vllm bench serve` of the CPU build, and has its flags for images."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The module of `vllm bench serve`. The `vllm` command needs a distribution named vllm, and the CPU
# build has another name.
BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""

PICTURES = {
    "random-mm-base-items-per-request": "2",
    "random-mm-num-mm-items-range-ratio": "0",
    "random-mm-limit-mm-per-prompt": '{"image": 2, "video": 0}',
    "random-mm-bucket-config": "{(64, 64, 1): 1.0}",
}


def bench(flags: Mapping[str, str], directory: Path, *, seconds: float) -> dict[str, Any]:
    """The result of a run with these flags; `seconds` is its timeout."""
    result = directory / "result.json"
    command = [sys.executable, "-c", BENCH, "--ignore-eos", "--disable-tqdm", "--save-result"]
    flags = {**flags, "tokenizer-mode": "mistral", "result-filename": str(result)}
    ended = subprocess.run(
        [*command, *(f"--{name}={value}" for name, value in flags.items())],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=directory,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    measured: dict[str, Any] = json.loads(result.read_text())
    return measured
