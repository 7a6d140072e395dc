"""The thought of a model in every API: apart from its answer, whole, streamed, and sent back."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2
from pixtral_client.requests import Answer, chat_request
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from tests.support import http_chat as chat
from tests.support import http_messages as anthropic
from tests.support import http_responses as responses
from tests.support.fake_tiers import FakeDecoder, Responses, delta
from tests.support.gateway_harness import Client
from tests.support.gateway_pictures import text, user

THINK, END_THINK = 34, 35
THOUGHT, SAID = "One and one.", "Two."
ASKED = {"role": "user", "content": "How many?"}
THANKS = {"role": "user", "content": "Thanks."}


@pytest.fixture(scope="session")
def prompts(thinking_model_dir: Path, spec: VisionSpec) -> PromptEncoder:
    return PromptEncoder.load(thinking_model_dir, spec)


@pytest.fixture
def decoders(decoders: list[FakeDecoder], prompts: PromptEncoder) -> list[FakeDecoder]:
    tokenizer: Any = prompts._tokenizer.instruct_tokenizer.tokenizer
    thought, said = (tokenizer.encode(each, False, False) for each in (THOUGHT, SAID))

    async def thinks(_: decoder_pb2.GenerateRequest) -> Responses:
        yield delta("[THINK]", THINK)
        yield delta(THOUGHT[:5], *thought[: len(thought) // 2])
        yield delta(f"{THOUGHT[5:]}[/THI", *thought[len(thought) // 2 :], END_THINK)
        yield delta(f"NK]{SAID[:1]}", *said[:1])
        yield delta(SAID[1:], *said[1:], finish=chat_pb2.FINISH_REASON_STOP)

    for decoder in decoders:
        decoder.behaviours = [thinks]
    return decoders


def prompt(decoders: list[FakeDecoder]) -> list[int]:
    """The prompt of the last request."""
    (call,) = [decoder.calls.pop() for decoder in decoders if decoder.calls]
    return list(call.prompt_token_ids)


def between(token_ids: list[int]) -> int:
    """The tokens that a prompt shows as thought."""
    return token_ids.index(END_THINK) - token_ids.index(THINK) - 1


async def test_chat_has_the_thought_apart(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    answer = await chat.ask(http, messages=[ASKED])
    message = answer["choices"][0]["message"]
    assert message["content"] == SAID
    assert message["reasoning"] == message["reasoning_content"] == THOUGHT
    assert answer["choices"][0]["finish_reason"] == "stop"
    details = answer["usage"]["completion_tokens_details"]
    assert 0 < details["reasoning_tokens"] < answer["usage"]["completion_tokens"]
    assert THINK not in prompt(decoders)

    # As it came.
    await chat.ask(http, messages=[ASKED, message, THANKS])
    assert between(prompt(decoders)) == details["reasoning_tokens"]


async def test_chat_streams_the_thought_before_the_answer(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    *events, done = await chat.stream(http, messages=[ASKED])
    assert done == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    assert "".join(each.get("reasoning", "") for each in deltas) == THOUGHT
    assert "".join(each.get("reasoning_content", "") for each in deltas) == THOUGHT
    assert "".join(each.get("content", "") for each in deltas) == SAID
    kinds = ["reasoning" if "reasoning" in each else "content" for each in deltas[1:]]
    assert kinds == sorted(kinds, reverse=True)


async def test_chat_leaves_the_thought_out_where_that_is_asked_for(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    answer = await chat.ask(http, messages=[ASKED], include_reasoning=False)
    message = answer["choices"][0]["message"]
    assert (message["content"], "reasoning" in message) == (SAID, False)
    *events, _ = await chat.stream(http, messages=[ASKED], include_reasoning=False)
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    assert not any("reasoning" in each or "reasoning_content" in each for each in deltas)


async def test_a_structured_answer_has_its_thought_apart(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    answer = await chat.ask(http, messages=[ASKED], structured_outputs={"regex": "Two."})
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == (SAID, THOUGHT)


async def test_responses_have_an_item_for_the_thought(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    answer = await responses.respond(http, "How many?")
    thought, said = answer["output"]
    assert thought["type"] == "reasoning"
    assert thought["content"] == [{"type": "reasoning_text", "text": THOUGHT}]
    assert said["content"][0]["text"] == SAID
    tokens = answer["usage"]["output_tokens_details"]["reasoning_tokens"]
    assert tokens > 0
    prompt(decoders)

    await responses.respond(http, [ASKED, thought, said, THANKS])
    assert between(prompt(decoders)) == tokens

    events = await responses.stream(http, "How many?")
    told = [each for each in events if each["type"] == "response.reasoning_text.delta"]
    assert "".join(each["delta"] for each in told) == THOUGHT
    (whole,) = [each for each in events if each["type"] == "response.reasoning_text.done"]
    assert whole["text"] == THOUGHT
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["reasoning", "message"]


async def test_messages_have_a_block_for_the_thought(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    answer = await anthropic.ask(http, [ASKED])
    thought, said = answer["content"]
    assert thought == {"type": "thinking", "thinking": THOUGHT, "signature": ""}
    assert said == {"type": "text", "text": SAID}
    prompt(decoders)

    await anthropic.ask(http, [ASKED, {"role": "assistant", "content": answer["content"]}, THANKS])
    assert between(prompt(decoders)) > 0

    events = await anthropic.stream(http, [ASKED])
    pieces = [each["delta"] for each in events if each["type"] == "content_block_delta"]
    assert "".join(each.get("thinking", "") for each in pieces) == THOUGHT
    assert "".join(each.get("text", "") for each in pieces) == SAID
    begun = [each for each in events if each["type"] == "content_block_start"]
    assert [each["content_block"]["type"] for each in begun] == ["thinking", "text"]


async def test_grpc_has_a_field_for_the_thought(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    asked = chat_pb2.Chat(messages=[user(text("How many?"))])
    whole = await client.stub.Complete(chat_pb2.CompleteRequest(chat=asked))
    (choice,) = whole.choices
    assert (choice.reasoning, choice.text) == (THOUGHT, SAID)
    tokens = whole.completion.usage.reasoning_tokens
    assert tokens > 0
    prompt(decoders)

    answer = Answer()
    async for event in client.stub.StreamComplete(chat_pb2.StreamCompleteRequest(chat=asked)):
        answer.add(event)
    assert answer.completion is not None
    assert (answer.completion.reasoning, answer.completion.text) == (THOUGHT, SAID)
    assert answer.completion.usage.reasoning_tokens == tokens
    prompt(decoders)

    back = {"role": "assistant", "content": SAID, "reasoning": answer.completion.reasoning}
    request = chat_request(chat_pb2.CompleteRequest, [ASKED, back, THANKS], None, {})
    await client.stub.Complete(request)
    assert between(prompt(decoders)) == tokens
