"""The examples of Pixtral-12B's model card against the running tiers, by every way to ask."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

from pixtral.v1 import chat_pb2, chat_pb2_grpc
from pixtral_client import Client
from tests.support.model_card import ADVANCED, NAME, SIMPLE, URLS
from tests.support.redis_server import RedisServer
from tests.support.stack.fleet import Tier
from tests.support.stack.service import Service

# As it stands there, except for the addresses of the server and of the images.
CURL = """
curl --location 'http://<your-node-url>:8000/v1/chat/completions' \\
--header 'Content-Type: application/json' \\
--header 'Authorization: Bearer token' \\
--data '{
    "model": "mistralai/Pixtral-12B-2409",
    "messages": [
      {
        "role": "user",
        "content": [
            {"type" : "text", "text": "Describe this image in detail please."},
            {"type": "image_url", "image_url": {"url": "<first image>"}},
            {"type" : "text", "text": "and this one as well. Answer in French."},
            {"type": "image_url", "image_url": {"url": "<second image>"}}
        ]
      }
    ]
  }'
"""
SHORT: dict[str, Any] = {"max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def gateway(
    service: Service,
    checkpoint: Path,
    redis: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Tier]:
    """One more before the same tiers, with the names that the card has and a shorter one."""
    addresses = service.stack.addresses
    flags = {
        "listen": "127.0.0.1:0",
        "http-listen": "127.0.0.1:0",
        "metrics-listen": "127.0.0.1:0",
        "model-dir": str(checkpoint),
        "served-model-name": f"{NAME},pixtral",
        "redis-url": redis.url,
        "encoders": addresses["encoder"].grpc,
        "decoders": addresses["decoder"].grpc,
    }
    made = [f"--{name}={value}" for name, value in flags.items()]
    with Tier("pixtral_gateway", tmp_path_factory.mktemp("card"), *made) as tier:
        yield tier.until_ready()


def to_proto(message: dict[str, Any]) -> chat_pb2.Message:
    """A message as one writes it by hand over gRPC."""
    roles = {"user": chat_pb2.ROLE_USER, "assistant": chat_pb2.ROLE_ASSISTANT}
    content = message["content"]
    given: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    parts = [
        chat_pb2.ContentPart(text=part["text"])
        if part["type"] == "text"
        else chat_pb2.ContentPart(image=chat_pb2.Image(url=part["image_url"]["url"]))
        for part in given
    ]
    return chat_pb2.Message(role=roles[message["role"]], content=parts)


@pytest.mark.parametrize("messages", [SIMPLE, ADVANCED], ids=["simple", "advanced"])
def test_its_lists_have_one_answer_by_every_way(
    gateway: Tier, messages: list[dict[str, Any]]
) -> None:
    body = {"model": NAME, "messages": messages, **SHORT}
    with httpx2.Client(base_url=f"http://{gateway.http_target}", timeout=60) as http:
        answered = http.post("/v1/chat/completions", json=body).raise_for_status().json()
    with Client(gateway.target) as sdk:
        completion = sdk.chat(messages, model="pixtral", **SHORT)
    with grpc.insecure_channel(gateway.target) as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        chat = chat_pb2.Chat(
            model=NAME,
            messages=[to_proto(each) for each in messages],
            sampling=chat_pb2.SamplingParams(**SHORT),
        )
        called = stub.Complete(chat_pb2.CompleteRequest(chat=chat), timeout=60)
    text = answered["choices"][0]["message"]["content"]
    assert text == completion.text == called.choices[0].text
    assert answered["model"] == called.model == NAME
    counts = {
        answered["usage"]["prompt_tokens"],
        completion.usage.prompt_tokens,
        called.completion.usage.prompt_tokens,
    }
    assert len(counts) == 1
    assert len(completion.images) == len({url for url in URLS if url in json.dumps(messages)})


def test_its_curl_is_answered(gateway: Tier) -> None:
    """Read as a shell would read it: this needs no curl."""
    command = CURL.replace("<your-node-url>:8000", gateway.http_target)
    command = command.replace("<first image>", URLS[0]).replace("<second image>", URLS[1])
    words = shlex.split(command.replace("\\\n", " "))
    given = dict(zip(words[1::2], words[2::2], strict=True))
    headers = [words[i + 1].split(": ", 1) for i, word in enumerate(words) if word == "--header"]
    # It has no limit, and the random model seldom ends by itself.
    body = json.dumps(json.loads(given["--data"]) | SHORT)
    answer = httpx2.post(
        given["--location"], content=body, headers=dict(headers), timeout=60
    ).raise_for_status()
    assert answer.json()["model"] == NAME
    assert len(answer.json()["pixtral"]["images"]) == 2


def test_a_name_that_is_not_served_is_told_those_that_are(gateway: Tier) -> None:
    with httpx2.Client(base_url=f"http://{gateway.http_target}", timeout=60) as http:
        listed = http.get("/v1/models").raise_for_status().json()["data"]
        body = {"model": "gpt-4o", "messages": SIMPLE, **SHORT}
        lost = http.post("/v1/chat/completions", json=body)
    assert [card["id"] for card in listed] == [NAME, "pixtral"]
    assert lost.status_code == 404
    assert f"use {NAME}, pixtral" in lost.json()["error"]["message"]


def test_mistral_evals_is_answered_as_its_readme_has_it(gateway: Tier) -> None:
    """The requests of mistral-evals, which is in no registry: `eval/models.py` and `eval/utils.py`.

    It waits for an empty answer of /health, and names every image JPEG, whatever it is.
    """
    port = gateway.http_target.rpartition(":")[2]
    first, second = (
        {"type": "image_url", "image_url": {"url": url.replace("image/png", "image/jpeg")}}
        for url in URLS[:2]
    )
    turns = [
        {"role": "user", "content": [first, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": "It is nature."},
        {"role": "user", "content": [{"type": "text", "text": "And this?"}, second]},
    ]
    body = {"temperature": 0.0, "max_tokens": 4, "messages": turns, "model": NAME}
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    with httpx2.Client(base_url=f"http://0.0.0.0:{port}", timeout=60) as http:
        health = http.get("/health")
        answer = http.post("/v1/chat/completions", headers=headers, content=json.dumps(body))
    assert (health.status_code, health.content) == (200, b"")
    assert answer.status_code == 200
    message = answer.json()["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert isinstance(message["content"], str)
