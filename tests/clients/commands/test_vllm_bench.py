"""`vllm bench serve`, against each route that it knows of and this service has."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.asking import MODEL, ROOT
from tests.support.vllm_bench import BENCH, PICTURES

RANDOM = {"dataset-name": "random", "random-input-len": "16", "random-output-len": "6"}
BACKENDS = {
    "openai-chat": ("/v1/chat/completions", {**RANDOM, "dataset-name": "random-mm", **PICTURES}),
    "openai": ("/v1/completions", RANDOM),
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_measures(url: str, backend: str, tmp_path: Path) -> None:
    endpoint, dataset = BACKENDS[backend]
    result = tmp_path / "result.json"
    flags = {
        "backend": backend,
        "base-url": url,
        "endpoint": endpoint,
        "model": MODEL,
        "tokenizer": str(ROOT / "models" / MODEL),
        "tokenizer-mode": "mistral",
        "num-prompts": "4",
        "result-filename": str(result),
        **dataset,
    }
    command = [sys.executable, "-c", BENCH, "--ignore-eos", "--disable-tqdm", "--save-result"]
    ended = subprocess.run(
        [*command, *(f"--{name}={value}" for name, value in flags.items())],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    measured = json.loads(result.read_text())
    assert (measured["completed"], measured["failed"]) == (4, 0)
    assert measured["total_output_tokens"] == 4 * 6
