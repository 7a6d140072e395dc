"""`vllm bench serve`, against each route that it knows of and this service has."""

from pathlib import Path

import pytest

from tests.clients.asking import MODEL, ROOT
from tests.support.vllm_bench import PICTURES, bench

RANDOM = {"dataset-name": "random", "random-input-len": "16", "random-output-len": "6"}
BACKENDS = {
    "openai-chat": ("/v1/chat/completions", {**RANDOM, "dataset-name": "random-mm", **PICTURES}),
    "openai": ("/v1/completions", RANDOM),
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_measures(url: str, backend: str, tmp_path: Path) -> None:
    endpoint, dataset = BACKENDS[backend]
    flags = {
        "backend": backend,
        "base-url": url,
        "endpoint": endpoint,
        "model": MODEL,
        "tokenizer": str(ROOT / "models" / MODEL),
        "num-prompts": "4",
        **dataset,
    }
    measured = bench(flags, tmp_path, seconds=300)
    assert (measured["completed"], measured["failed"]) == (4, 0)
    assert measured["total_output_tokens"] == 4 * 6
