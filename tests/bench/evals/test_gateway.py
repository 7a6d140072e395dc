"""The command against a real gateway, by both doors."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from bench.evals.__main__ import main
from tests.support.fake_tiers import FakeDecoder
from tests.support.gateway_harness import Client
from tests.support.gateway_pictures import picture

SIZES = {"one": (64, 32), "two": (32, 64)}
ROWS: dict[str, dict[str, Any]] = {
    "docvqa": {"image": "one.png", "question": "Which?", "answers": ["itc"]},
    "mmmu": {
        "question": "Is <image 1> like <image 2>?",
        "question_type": "multiple-choice",
        "options": ["yes", "no"],
        "answer": "A",
        "image_1": "one.png",
        "image_2": "two.png",
    },
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, size in SIZES.items():
        (tmp_path / f"{name}.png").write_bytes(picture(*size))
    for name, row in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("door", ["grpc", "http"])
async def test_every_question_is_answered(
    client: Client, decoders: list[FakeDecoder], data: Path, door: str
) -> None:
    url = client.url if door == "http" else f"grpc://{client.target}"
    results = data / "results"
    flags = ["--url", url, "--data", str(data), "--results", str(results)]
    async with asyncio.timeout(240):
        assert await asyncio.to_thread(main, flags) == 0
    answers = {
        name: json.loads((results / f"{name}.answers.jsonl").read_text("utf-8")) for name in ROWS
    }
    assert all(answer["answer"] and not answer["error"] for answer in answers.values())
    calls = [call for decoder in decoders for call in decoder.calls]
    seen = {(len(call.images), call.sampling.max_tokens) for call in calls}
    assert seen == {(1, 10), (2, 2048)}
    assert all(call.sampling.temperature == 0 for call in calls)
