"""The README's `buf curl` commands, which learn the service from its reflection. They need npm."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.stack.new_picture import new_picture
from tests.support.stack.service import Service

pytestmark = pytest.mark.npm
BUF = Path(__file__).parents[2] / "node_modules" / ".bin" / "buf"


def curl(service: Service, method: str, *options: str, **request: Any) -> list[Any]:
    """The responses; a stream has several."""
    url = f"http://{service.stack.target}/pixtral.v1.ChatService/{method}"
    options = ("--protocol", "grpc", "--http2-prior-knowledge", *options)
    ended = subprocess.run(
        [str(BUF), "curl", *options, "--data", "@-", url],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    found, rest = [], ended.stdout.strip()
    while rest:
        value, end = json.JSONDecoder().raw_decode(rest)
        found.append(value)
        rest = rest[end:].strip()
    return found


def question(*parts: Any) -> dict[str, Any]:
    return {"role": "ROLE_USER", "content": [*parts, {"text": "What is this?"}]}


def test_the_model_and_an_answer(service: Service) -> None:
    (models,) = curl(service, "ListModels")
    assert [model["name"] for model in models["models"]] == ["random-pixtral"]

    image = {"image": {"data": base64.b64encode(new_picture()).decode()}}
    chat = {
        "messages": [question(image)],
        "sampling": {"maxTokens": 5, "temperature": 0, "ignoreEos": True},
    }
    (whole,) = curl(service, "Complete", chat=chat)
    (choice,) = whole["choices"]
    *deltas, last = curl(service, "StreamComplete", chat=chat)
    assert "".join(each["delta"].get("text", "") for each in deltas) == choice["text"]
    for field in ("promptTokens", "imageTokens", "completionTokens"):
        assert last["completion"]["usage"][field] == whole["completion"]["usage"][field]
    assert choice["finishReason"] == "FINISH_REASON_LENGTH"


@pytest.mark.parametrize("version", ["grpc-v1", "grpc-v1alpha"])
def test_either_version_of_reflection(service: Service, version: str) -> None:
    (models,) = curl(service, "ListModels", "--reflect-protocol", version)
    assert [model["name"] for model in models["models"]] == ["random-pixtral"]


def test_a_tool_call(service: Service) -> None:
    chat = {
        "messages": [question()],
        "tools": [{"name": "look"}],
        "toolChoice": {"mode": "TOOL_CHOICE_MODE_REQUIRED"},
        "parallelToolCalls": False,
        "sampling": {"maxTokens": 40, "temperature": 0},
    }
    (whole,) = curl(service, "Complete", chat=chat)
    (call,) = whole["choices"][0]["toolCalls"]
    assert (call["name"], call["arguments"]) == ("look", "{}")
    assert whole["choices"][0]["finishReason"] == "FINISH_REASON_TOOL_CALLS"
