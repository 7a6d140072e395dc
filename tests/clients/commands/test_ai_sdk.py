"""The AI SDK, unmodified, in Node.js."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.asking import ANSWER, MODEL, PICTURE, QUESTION, ROOT

PROVIDERS = ["openai, by default", "openai.chat", "openai-compatible", "mistral"]
QUESTIONS = ["whole", "stream", "two messages of the user", "tool", "output"]
# Where its packages are: a module that comes by standard input finds them from there.
PACKAGES = ROOT / ".cache" / "clients" / "npm"
SCRIPT = Path(__file__).with_name("ai_sdk.mjs")


@pytest.fixture(scope="module")
def told() -> dict[str, dict[str, dict[str, Any]]]:
    names = {"MODEL": MODEL, "PICTURE": str(PICTURE), "QUESTION": QUESTION}
    ended = subprocess.run(
        ["node", "--input-type=module", "-"],
        input=SCRIPT.read_text("utf-8"),
        env={**os.environ, **names},
        cwd=PACKAGES,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(ended.stdout)
    return found


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_each_provider(
    told: dict[str, dict[str, dict[str, Any]]], provider: str, question: str
) -> None:
    result = told[provider][question]
    assert "error" not in result
    if question in ("whole", "stream"):
        assert result == {"text": ANSWER, "hasUsage": True}
    elif question == "tool":
        assert result["isOfSchema"]
        assert result["steps"] == 2
        assert result["text"]
    elif question == "output":
        assert result["isOfSchema"]
    else:
        assert result["text"]
