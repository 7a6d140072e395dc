"""What the gateway tells of a request: its line in the log, its spans."""

import asyncio
from collections.abc import Iterator

import grpc
import pytest

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2
from pixtral_core.errors import Overloaded
from tests.support.fake_tiers import (
    FakeDecoder,
    Responses,
    answers,
    calls_a_tool,
    delta,
    never_ends,
    refuses,
)
from tests.support.gateway_harness import Client
from tests.support.gateway_pictures import image, picture, text, user
from tests.support.log_lines import Lines, logged
from tests.support.stack.span_collector import Collector, collector

PICTURE = picture(40, 30)
QUESTION = user(image(PICTURE), text("What is this?"))


@pytest.fixture
def lines() -> Iterator[Lines]:
    with logged() as seen:
        yield seen


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collector() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        yield receiver


async def test_a_line_tells_what_became_of_a_request(lines: Lines, client: Client) -> None:
    call = client.stub.Complete(
        chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[QUESTION])),
        metadata=(("x-request-id", "mine"),),
    )
    response = await call
    await lines.become(lambda seen: seen.calls)
    (line,) = lines.calls
    assert {"seconds", "ttft_seconds", "encode_seconds"} <= line.keys()
    assert line["encode_seconds"] > 0
    expected = {
        "request_id": "mine",
        "code": "OK",
        "completion_id": response.id,
        "images": 1,
        "cached_images": 0,
        "prompt_tokens": response.completion.usage.prompt_tokens,
        "cached_tokens": 3,
        "completion_tokens": 3,
        "finish_reason": "stop",
    }
    assert expected.items() <= line.items()
    assert "trace_id" not in line


LOOK = chat_pb2.Tool(name="look", description="Looks.", parameters='{"type": "object"}')


async def test_line_and_trace_have_the_finish_reason_that_the_client_got(
    received: Collector, lines: Lines, client: Client, decoders: list[FakeDecoder]
) -> None:
    """The decoder knows of no tool call, and says that the choice stopped."""
    for decoder in decoders:
        decoder.behaviours = [calls_a_tool]
    chat = chat_pb2.Chat(messages=[QUESTION], tools=[LOOK])
    response = await client.stub.Complete(chat_pb2.CompleteRequest(chat=chat))
    assert response.choices[0].finish_reason == chat_pb2.FINISH_REASON_TOOL_CALLS
    await lines.become(lambda seen: seen.calls)
    assert lines.calls[0]["finish_reason"] == "tool_calls"
    spans = await asyncio.to_thread(
        received.wait, lambda seen: any(not span.parent_id for span in seen)
    )
    (root,) = (span for span in spans if not span.parent_id)
    assert root.attributes["gen_ai.response.finish_reasons"] == ["tool_calls"]


async def two_ends(_: decoder_pb2.GenerateRequest) -> Responses:
    for index, reason in ((1, chat_pb2.FINISH_REASON_LENGTH), (0, chat_pb2.FINISH_REASON_STOP)):
        response = delta("Hello", 1001, finish=reason)
        response.delta.index = index
        yield response


async def test_each_choice_has_its_finish_reason(
    lines: Lines, client: Client, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [two_ends]
    chat = chat_pb2.Chat(messages=[QUESTION], sampling=chat_pb2.SamplingParams(n=2))
    await client.stub.Complete(chat_pb2.CompleteRequest(chat=chat))
    await lines.become(lambda seen: seen.calls)
    assert lines.calls[0]["finish_reason"] == "stop,length"


async def test_a_line_of_a_stream_that_was_cut_tells_how_far_it_came(
    lines: Lines, client: Client, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [never_ends]
    call = client.stub.StreamComplete(
        chat_pb2.StreamCompleteRequest(chat=chat_pb2.Chat(messages=[QUESTION]))
    )
    await call.read()
    call.cancel()
    await lines.become(lambda seen: seen.calls)
    (line,) = lines.calls
    assert (line["code"], line["completion_tokens"]) == ("CANCELLED", 1)
    assert line["ttft_seconds"] > 0
    assert "finish_reason" not in line


async def test_a_line_of_a_refusal_tells_why(lines: Lines, client: Client) -> None:
    broken = user(image(PICTURE[:20]), text("What is this?"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.stub.Complete(chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[broken])))
    await lines.become(lambda seen: seen.calls)
    (line,) = lines.calls
    assert line["code"] == "INVALID_ARGUMENT"
    assert line["reason"].startswith("IMAGE_")
    trailing = dict(refused.value.trailing_metadata())
    assert trailing["x-request-id"] == line["request_id"]


async def test_each_attempt_at_a_decoder_is_seen(
    received: Collector, client: Client, decoders: list[FakeDecoder]
) -> None:
    outcomes = [refuses(Overloaded("full")), answers]

    async def next_outcome(request: decoder_pb2.GenerateRequest) -> Responses:
        async for response in outcomes.pop(0)(request):
            yield response

    for decoder in decoders:
        decoder.behaviours = [next_outcome]
    await client.stub.Complete(chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[QUESTION])))
    spans = await asyncio.to_thread(
        received.wait, lambda seen: any(not span.parent_id for span in seen)
    )
    (root,) = (span for span in spans if not span.parent_id)
    first, second = sorted(
        (span for span in spans if span.name == "generate"), key=lambda span: span.began
    )
    assert (first.parent_id, second.parent_id) == (root.span_id, root.span_id)
    assert (first.attributes["pixtral.attempt"], second.attributes["pixtral.attempt"]) == (1, 2)
    assert first.attributes["error.type"] == "RESOURCE_EXHAUSTED"
    assert [span.is_error for span in (root, first, second)] == [False, True, False]
    ports = {span.attributes["server.port"] for span in (first, second)}
    assert ports == {int(decoder.address.rpartition(":")[2]) for decoder in decoders}
