"""The gateway as a process has it: its tier on the chassis, called over gRPC."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2
from pixtral_core.errors import InvalidRequest, StartupError, from_rpc_error
from pixtral_core.server.process import running
from pixtral_gateway.process import GatewayTier
from pixtral_gateway.settings import GatewaySettings
from tests.support.fake_tiers import (
    TOOL_CALLS,
    FakeDecoder,
    FakeEncoder,
    answers,
    calls_a_tool,
    delta,
    never_ends,
    refuses,
)
from tests.support.gateway_harness import Client, eventually, ever_longer, permits
from tests.support.gateway_pictures import (
    assistant,
    image,
    image_url,
    picture,
    png_of,
    result,
    system,
    text,
    user,
)
from tests.support.redis_server import RedisServer

HELLO = user(text("Hello?"))
PICTURE = picture(40, 30)


async def test_stream_ends_with_completion_and_equals_complete(client: Client) -> None:
    messages = [system(text("Be brief.")), user(image(PICTURE), text("What is this?"))]

    stream = client.stub.StreamComplete(
        chat_pb2.StreamCompleteRequest(chat=chat_pb2.Chat(messages=messages))
    )
    events = [event async for event in stream]
    whole = await client.stub.Complete(
        chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=messages))
    )

    *deltas, last = events
    assert [event.WhichOneof("event") for event in events] == ["delta", "delta", "completion"]
    assert len({event.id for event in events}) == 1
    (choice,) = whole.choices
    assert choice.text == "".join(event.delta.text for event in deltas) == "Hello world"
    assert list(choice.token_ids) == [t for event in deltas for t in event.delta.token_ids]
    assert choice.finish_reason == deltas[-1].delta.finish_reason == chat_pb2.FINISH_REASON_STOP
    assert whole.completion.usage == last.completion.usage
    assert whole.completion.usage.prompt_tokens > whole.completion.usage.image_tokens > 0
    assert whole.model == "pixtral-small"
    assert [report.cached for report in last.completion.images] == [False]
    assert [report.cached for report in whole.completion.images] == [True]
    assert last.completion.timings.encode.ToNanoseconds() > 0
    assert last.completion.timings.total.ToNanoseconds() > 0


def likely(*token_ids: int) -> chat_pb2.TokenLogprobs:
    """A prompt's first token where there is none."""
    told = [chat_pb2.Logprob(token_id=t, text="a", logprob=-2, rank=t) for t in token_ids]
    return chat_pb2.TokenLogprobs(chosen=told[0] if told else None, top=told[1:])


async def tells_of_the_prompt(
    request: decoder_pb2.GenerateRequest,
) -> AsyncIterator[decoder_pb2.GenerateResponse]:
    assert request.sampling.prompt_logprobs == 1
    yield decoder_pb2.GenerateResponse(prompt_logprobs=[likely(), likely(7, 1)])
    yield decoder_pb2.GenerateResponse(prompt_logprobs=[likely(9, 2)])
    async for response in answers(request):
        yield response


async def test_prompt_logprobs_are_told_at_the_end(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [tells_of_the_prompt]
    messages, sampling = [HELLO], chat_pb2.SamplingParams(prompt_logprobs=1)

    whole = await client.stub.Complete(
        chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=messages, sampling=sampling))
    )
    stream = client.stub.StreamComplete(
        chat_pb2.StreamCompleteRequest(chat=chat_pb2.Chat(messages=messages, sampling=sampling))
    )
    *deltas, last = [event async for event in stream]

    assert list(whole.completion.prompt_logprobs) == [likely(), likely(7, 1), likely(9, 2)]
    assert last.completion.prompt_logprobs == whole.completion.prompt_logprobs
    assert [event.delta.text for event in deltas] == ["Hello", " world"]


async def test_a_priority_goes_to_the_decoder_unless_it_is_above_all_others(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    await client.stub.Complete(
        chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[HELLO], priority=5))
    )
    (call,) = [call for decoder in decoders for call in decoder.calls]
    assert call.priority == 5

    with pytest.raises(grpc.aio.AioRpcError) as above:
        await client.stub.Complete(
            chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[HELLO], priority=-1))
        )
    refusal = from_rpc_error(above.value)
    assert refusal.reason == "PRIORITY_NOT_ALLOWED"
    assert [field for field, _ in refusal.violations] == ["chat.priority"]


async def test_an_engine_without_priorities_names_the_field(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [refuses(InvalidRequest("priority", "must be 0"))]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.stub.Complete(
            chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[HELLO], priority=1))
        )
    assert from_rpc_error(refused.value).violations == (("chat.priority", "must be 0"),)


async def by_turns(_: decoder_pb2.GenerateRequest) -> AsyncIterator[decoder_pb2.GenerateResponse]:
    for index, said, ends in ((1, "He", 0), (0, "Hi", 0), (1, "llo", 1), (0, "!", 2)):
        response = delta(said, 1000 + index, finish=ends)  # type: ignore[arg-type]
        response.delta.index = index
        response.delta.logprobs.add(chosen=chat_pb2.Logprob(text=said))
        yield response


async def test_choices_that_come_by_turns_are_told_apart(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [by_turns]
    sampling = chat_pb2.SamplingParams(n=2, logprobs=0)

    stream = client.stub.StreamComplete(
        chat_pb2.StreamCompleteRequest(chat=chat_pb2.Chat(messages=[HELLO], sampling=sampling))
    )
    *deltas, last = [event async for event in stream]
    whole = await client.stub.Complete(
        chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[HELLO], sampling=sampling))
    )

    assert [event.delta.index for event in deltas] == [1, 0, 1, 0]
    assert [
        (choice.index, choice.text, list(choice.token_ids), choice.finish_reason)
        for choice in whole.choices
    ] == [(0, "Hi!", [1000, 1000], 2), (1, "Hello", [1001, 1001], 1)]
    for choice in whole.choices:
        assert "".join(each.chosen.text for each in choice.logprobs) == choice.text
    assert whole.completion.usage.completion_tokens == 4
    assert last.completion.usage == whole.completion.usage


LOOK = chat_pb2.Tool(name="look", description="Looks.", parameters='{"type": "object"}')


async def test_a_call_is_streamed_and_told_whole(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [calls_a_tool]

    stream = client.stub.StreamComplete(
        chat_pb2.StreamCompleteRequest(chat=chat_pb2.Chat(messages=[HELLO], tools=[LOOK]))
    )
    *deltas, last = [event async for event in stream]
    whole = await client.stub.Complete(
        chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[HELLO], tools=[LOOK]))
    )

    (choice,) = whole.choices
    (call,) = choice.tool_calls
    assert (choice.text, call.name, call.arguments) == ("", "look", '{"at": "cat"}')
    assert choice.finish_reason == chat_pb2.FINISH_REASON_TOOL_CALLS
    pieces = [piece for event in deltas for piece in event.delta.tool_calls]
    assert [piece.name for piece in pieces] == ["look", ""]
    assert "".join(piece.arguments for piece in pieces) == call.arguments
    assert deltas[-1].delta.finish_reason == chat_pb2.FINISH_REASON_TOOL_CALLS
    assert last.completion.usage == whole.completion.usage
    assert list(choice.token_ids) == [TOOL_CALLS, 1001, 1001, 1001, 2]

    # The function that was called is answered with its arguments.
    answered = [
        HELLO,
        chat_pb2.Message(role=chat_pb2.ROLE_ASSISTANT, tool_calls=choice.tool_calls),
        result(call.id, text("It is a cat.")),
    ]
    more = await client.stub.Complete(
        chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=answered, tools=[LOOK]))
    )
    assert more.completion.usage.prompt_tokens > whole.completion.usage.prompt_tokens


@pytest.mark.parametrize(
    "choice",
    [
        chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_REQUIRED),
        chat_pb2.ToolChoice(name="look"),
    ],
)
async def test_the_decoder_is_told_what_must_be_called(
    client: Client, decoders: list[FakeDecoder], choice: chat_pb2.ToolChoice
) -> None:
    for decoder in decoders:
        decoder.behaviours = [calls_a_tool]
    request = chat_pb2.CompleteRequest(
        chat=chat_pb2.Chat(messages=[HELLO], tools=[LOOK], tool_choice=choice)
    )

    whole = await client.stub.Complete(request)
    counted = await client.stub.CountTokens(
        chat_pb2.CountTokensRequest(
            chat=chat_pb2.Chat(messages=[HELLO], tools=[LOOK], tool_choice=choice)
        )
    )

    assert [call.name for call in whole.choices[0].tool_calls] == ["look"]
    assert whole.choices[0].finish_reason == chat_pb2.FINISH_REASON_TOOL_CALLS
    (sent,) = [call for decoder in decoders for call in decoder.calls]
    assert sent.prompt_token_ids[-1] == TOOL_CALLS
    assert len(sent.prompt_token_ids) == counted.prompt_tokens
    assert '"const": "look"' in sent.sampling.structured_output.json_schema


async def test_tools_that_are_out_of_effect_are_nowhere(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [calls_a_tool]
    none = chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_NONE)

    with_none = await client.stub.Complete(
        chat_pb2.CompleteRequest(
            chat=chat_pb2.Chat(messages=[HELLO], tools=[LOOK], tool_choice=none)
        )
    )
    without = await client.stub.Complete(
        chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[HELLO]))
    )

    assert with_none.choices == without.choices
    assert with_none.completion.usage == without.completion.usage
    assert without.choices[0].text == '[TOOL_CALLS][{"name": "look", "arguments": {"at": "cat"}}]'
    assert without.choices[0].finish_reason == chat_pb2.FINISH_REASON_STOP


async def test_a_structure_and_tools_leave_the_structure(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [calls_a_tool]
    sampling = chat_pb2.SamplingParams(
        structured_output=chat_pb2.StructuredOutput(json_object=True)
    )

    whole = await client.stub.Complete(
        chat_pb2.CompleteRequest(
            chat=chat_pb2.Chat(messages=[HELLO], tools=[LOOK], sampling=sampling)
        )
    )

    assert not whole.choices[0].tool_calls
    assert whole.choices[0].text == '[TOOL_CALLS][{"name": "look", "arguments": {"at": "cat"}}]'


async def test_a_wrong_tool_names_its_field(client: Client) -> None:
    bad = [chat_pb2.Tool(name="a"), chat_pb2.Tool(name="b", parameters='{"type": 1}')]
    for request in (
        chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[HELLO], tools=bad)),
        chat_pb2.CompleteRequest(
            chat=chat_pb2.Chat(
                messages=[HELLO], tools=bad[:1], tool_choice=chat_pb2.ToolChoice(name="c")
            )
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.stub.Complete(request)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_tokens_are_counted_as_a_completion_counts_them(client: Client) -> None:
    messages = [user(image(PICTURE), text("What is this?"))]

    counted = await client.stub.CountTokens(
        chat_pb2.CountTokensRequest(chat=chat_pb2.Chat(messages=messages))
    )
    whole = await client.stub.Complete(
        chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=messages))
    )

    assert counted.prompt_tokens == whole.completion.usage.prompt_tokens
    assert counted.image_tokens == whole.completion.usage.image_tokens


async def test_model_is_listed_under_its_directorys_name(client: Client) -> None:
    (model,) = (await client.stub.ListModels(chat_pb2.ListModelsRequest())).models

    assert model == chat_pb2.Model(
        name="pixtral-small", context_length=32_768, max_images=3, max_image_bytes=100_000
    )
    await client.stub.Complete(
        chat_pb2.CompleteRequest(chat=chat_pb2.Chat(model=model.name, messages=[HELLO]))
    )


CONTENT = "messages[0].content[0]"
BAD_REQUESTS: dict[str, tuple[list[chat_pb2.Message], dict[str, Any], str]] = {
    "no messages": ([], {}, "messages"),
    "unknown role": ([chat_pb2.Message(role=9, content=[text("x")])], {}, "messages[0].role"),  # type: ignore[arg-type]
    "an answer last": ([HELLO, assistant(text("x"))], {}, "messages[1].role"),
    "role order": ([HELLO, assistant(text("x")), system(text("x"))], {}, "messages[2].role"),
    "not an image": ([user(image(b"GIF? no"))], {}, f"{CONTENT}.image.data"),
    "0 bytes": ([user(image(b""))], {}, f"{CONTENT}.image.data"),
    "50000x50000": ([user(image(png_of(50_000, 50_000)))], {}, f"{CONTENT}.image.data"),
    "over the byte cap": ([user(image(PICTURE + bytes(100_000)))], {}, f"{CONTENT}.image.data"),
    "a web URL": ([user(image_url("https://example.com/a.png"))], {}, f"{CONTENT}.image.url"),
    "a user's thinking": (
        [user(chat_pb2.ContentPart(thinking="Hm."))],
        {},
        f"{CONTENT}.thinking",
    ),
    "an unknown detail": (
        [
            user(
                chat_pb2.ContentPart(
                    image=chat_pb2.Image(data=PICTURE, detail=9)  # type: ignore[arg-type]
                )
            )
        ],
        {},
        f"{CONTENT}.image.detail",
    ),
    "too many images": ([user(*[image(PICTURE)] * 4)], {}, "messages"),
    "too long": ([user(text("word " * 40_000))], {}, "messages"),
    "too many parts": ([user(*[text("")] * 40_000)], {}, "messages"),
    "too many messages": ([user(text(""))] * 40_000, {}, "messages"),
    "temperature -1": ([HELLO], {"temperature": -1}, "sampling.temperature"),
    "stop token": ([HELLO], {"stop_token_ids": [1 << 30]}, "sampling.stop_token_ids[0]"),
    "no choices": ([HELLO], {"n": 0}, "sampling.n"),
    "no structure": ([HELLO], {"structured_output": {}}, "sampling.structured_output"),
    "no schema": (
        [HELLO],
        {"structured_output": {"json_schema": "[1]"}},
        "sampling.structured_output.json_schema",
    ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_bad_requests_name_their_field_and_disturb_nothing(
    client: Client, encoders: list[FakeEncoder], redis: RedisServer, name: str
) -> None:
    messages, sampling, field = BAD_REQUESTS[name]
    params = chat_pb2.SamplingParams(**sampling)
    calls = (
        client.stub.Complete(
            chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=messages, sampling=params))
        ),
        client.stub.StreamComplete(
            chat_pb2.StreamCompleteRequest(chat=chat_pb2.Chat(messages=messages, sampling=params))
        ).read(),
    )
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call

        error = from_rpc_error(refused.value)
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert [path for path, _ in error.violations] == [f"chat.{field}"]
    assert not any(encoder.calls for encoder in encoders)
    assert permits() == 0
    await client.stub.Complete(chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[HELLO])))


@pytest.mark.parametrize("method", ["Complete", "CountTokens"])
async def test_other_models_are_not_found(client: Client, method: str) -> None:
    request = {
        "Complete": chat_pb2.CompleteRequest(chat=chat_pb2.Chat(model="other", messages=[HELLO])),
        "CountTokens": chat_pb2.CountTokensRequest(
            chat=chat_pb2.Chat(model="other", messages=[HELLO])
        ),
    }[method]

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(client.stub, method)(request)

    error = from_rpc_error(refused.value)
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert error.reason == "MODEL_NOT_FOUND"


async def test_cancelled_call_stops_the_decoder_and_frees_its_permit(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [never_ends, answers]
    call = client.stub.StreamComplete(
        chat_pb2.StreamCompleteRequest(chat=chat_pb2.Chat(messages=[HELLO]))
    )
    await call.read()
    assert permits() == 1
    call.cancel()

    await eventually(lambda: sum(decoder.cancelled for decoder in decoders) == 1)
    await eventually(lambda: permits() == 0)


async def test_a_full_gateway_refuses_before_it_parses(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [never_ends]
    request = chat_pb2.StreamCompleteRequest(chat=chat_pb2.Chat(messages=[HELLO]))
    held = [client.stub.StreamComplete(request) for _ in range(16)]
    for call in held:
        await call.read()
    # It would refuse otherwise what it cannot read.
    for method, malformed in (("Complete", b"\xff"), ("StreamComplete", b"\xff")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.raw(method, malformed)
        error = from_rpc_error(refused.value)
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.retry_after
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        answer = await http.post(
            f"{client.url}/v1/chat/completions",
            content=b"{",
            headers={"content-type": "application/json"},
        )
    assert answer.status_code == 429
    for call in held:
        call.cancel()
    await eventually(lambda: permits() == 0)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.raw("Complete", b"\xff")
    assert from_rpc_error(refused.value).reason == "MALFORMED_MESSAGE"


async def test_deadline_stops_the_decoder_and_frees_its_permit(
    client: Client, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [never_ends]

    for seconds in ever_longer():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.stub.Complete(
                chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[HELLO])), timeout=seconds
            )
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if any(decoder.calls for decoder in decoders):
            break

    await eventually(lambda: sum(decoder.cancelled for decoder in decoders))
    await eventually(lambda: permits() == 0)


async def test_checkpoint_that_cannot_be_served_is_told_at_the_start(tmp_path: Path) -> None:
    settings = GatewaySettings(
        listen="127.0.0.1:0", model_dir=tmp_path, decoders=["127.0.0.1:1"], drain_seconds=0
    )

    with pytest.raises(StartupError, match=r"params\.json"):
        async with running(GatewayTier(settings), settings):
            pass
