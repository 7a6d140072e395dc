"""Chat completions over HTTP: whole, and in chunks."""

import base64
import json
import math
from typing import Any

import httpx
import pytest

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2
from pixtral_core.model.vision_spec import VisionSpec
from tests.support.fake_tiers import FakeDecoder, Responses
from tests.support.gateway_harness import Client
from tests.support.gateway_pictures import image, picture, system, text, user
from tests.support.http_chat import CHAT, HELLO, LOOK, PICTURE, URL, ask, stream


async def test_an_answer_is_that_of_grpc_in_openais_form(
    http: httpx.AsyncClient, client: Client
) -> None:
    answer = await ask(http, messages=LOOK, model="pixtral-small")
    messages = [system(text("Be brief.")), user(image(PICTURE), text("What is this?"))]
    same = await client.stub.Complete(
        chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=messages))
    )

    usage = same.completion.usage
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > 1_700_000_000
    extras = answer.pop("pixtral")
    assert answer == {
        "object": "chat.completion",
        "model": "pixtral-small",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello world", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": 3,
            "total_tokens": usage.prompt_tokens + 3,
            "prompt_tokens_details": {"cached_tokens": 3, "image_tokens": usage.image_tokens},
        },
    }
    (report,) = extras["images"]
    assert report.pop("cached") is False
    assert report["sha256"] == same.completion.images[0].sha256
    assert extras["timings"]["total_seconds"] > extras["timings"]["encode_seconds"] > 0


async def test_a_stream_begins_with_the_role_and_ends_with_done(http: httpx.AsyncClient) -> None:
    *events, done = await stream(http)

    chunks = [json.loads(event) for event in events]
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hello"},
        {"content": " world"},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_usage_comes_last_where_it_is_asked_for(http: httpx.AsyncClient) -> None:
    whole = await ask(http, messages=LOOK)
    *events, _ = await stream(http, messages=LOOK, stream_options={"include_usage": True})

    *chunks, last = [json.loads(event) for event in events]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert [each["cached"] for each in last["pixtral"]["images"]] == [True]


async def test_usage_so_far_is_in_every_chunk_where_it_is_asked_for(
    http: httpx.AsyncClient,
) -> None:
    asked = {"include_usage": True, "continuous_usage_stats": True}
    *events, _ = await stream(http, messages=LOOK, stream_options=asked)
    *chunks, last = [json.loads(event) for event in events]

    prompt = last["usage"]["prompt_tokens"]
    assert prompt > 0
    assert [chunk["usage"] for chunk in chunks] == [
        {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
        for made in (0, 1, 3)
    ]
    alone = await stream(http, stream_options={"continuous_usage_stats": True})
    assert not any("usage" in json.loads(event) for event in alone[:-1])


@pytest.mark.parametrize(
    "url", [URL, {"url": URL}, {"url": URL, "detail": "low"}], ids=["text", "object", "detail"]
)
async def test_images_come_as_text_or_object_several_and_in_any_turn(
    http: httpx.AsyncClient, url: Any
) -> None:
    other = base64.b64encode(picture(20, 20, form="JPEG")).decode()
    shown = {"type": "image_url", "image_url": url}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [shown, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": "A cat.", "refusal": None, "tool_calls": None},
        {
            "role": "user",
            "name": "someone",
            "content": [
                {"type": "text", "text": "And these?"},
                shown,
                {"type": "image_url", "image_url": f"data:image/jpeg;base64,{other}"},
            ],
        },
    ]
    answer = await ask(http, messages=messages)

    sizes = [(each["width"], each["height"]) for each in answer["pixtral"]["images"]]
    assert sizes == [(40, 30), (40, 30), (20, 20)]


@pytest.mark.parametrize("detail", ["low", "high", "auto", "original", None])
async def test_detail_is_how_large_an_image_is_shown(
    http: httpx.AsyncClient, spec: VisionSpec, detail: str | None
) -> None:
    side = spec.max_image_size
    shown_file = picture(side, side, form="JPEG")
    url = f"data:image/jpeg;base64,{base64.b64encode(shown_file).decode()}"
    shown = {"type": "image_url", "image_url": {"url": url, "detail": detail}}

    answer = await ask(http, messages=[{"role": "user", "content": [shown]}])

    grid = spec.grid(side, side, low_detail=detail == "low")
    (report,) = answer["pixtral"]["images"]
    assert report["tokens"] == grid.placeholder_length


async def test_sampling_arrives_at_the_decoder(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    given: dict[str, Any] = {
        "min_tokens": 2,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.25,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "seed": -1,
        "stop": ["a", "b"],
        "stop_token_ids": [5],
        "ignore_eos": True,
    }
    await ask(http, max_tokens=9, **given)
    await ask(http, max_completion_tokens=8, max_tokens=9, stop="c", random_seed=4, top_k=-1)
    await ask(http, temperature=None, stop=None, max_tokens=None, stream=None, model=None)

    first, second, third = (call.sampling for d in decoders for call in d.calls)
    assert first == chat_pb2.SamplingParams(max_tokens=9, **given)
    assert second == chat_pb2.SamplingParams(max_tokens=8, stop=["c"], seed=4, top_k=0)
    assert third == chat_pb2.SamplingParams()


NOTHING: dict[str, Any] = {
    "n": 1,
    "logprobs": False,
    "top_logprobs": None,
    "logit_bias": {},
    "tools": [],
    "tool_choice": "none",
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "store": False,
    "metadata": {"a": "b"},
    "user": "someone",
    "service_tier": "auto",
    "safe_prompt": False,
    "skip_special_tokens": True,
    "no_such_field": {"at": ["all"]},
}


@pytest.mark.parametrize("name", NOTHING)
async def test_what_asks_for_nothing_is_passed_over(http: httpx.AsyncClient, name: str) -> None:
    answer = await ask(http, **{name: NOTHING[name]})

    assert answer["choices"][0]["message"]["content"] == "Hello world"
    await ask(http, **{name: None})


async def test_an_answers_message_can_be_sent_back_as_it_came(http: httpx.AsyncClient) -> None:
    first = await ask(http)
    messages = [*HELLO, first["choices"][0]["message"], {"role": "user", "content": "Go on."}]

    assert (await ask(http, messages=messages))["usage"]["completion_tokens"] == 3


async def two_choices(_: decoder_pb2.GenerateRequest) -> Responses:
    top = [chat_pb2.Logprob(token_id=5, text="a", logprob=-math.inf)]
    told = chat_pb2.TokenLogprobs(
        chosen=chat_pb2.Logprob(token_id=4, text="é", logprob=-0.5), top=top
    )
    for index, words in ((0, "On"), (1, "Tw"), (0, "e"), (1, "o")):
        choice = chat_pb2.Choice(index=index, text=words, token_ids=[4], logprobs=[told])
        if words in ("e", "o"):
            choice.finish_reason = chat_pb2.FINISH_REASON_STOP
        yield decoder_pb2.GenerateResponse(delta=choice)


LOGPROB = {
    "token": "é",
    "logprob": -0.5,
    "bytes": [195, 169],
    "top_logprobs": [{"token": "a", "logprob": -9999.0, "bytes": [97]}],
}


async def test_several_answers_each_with_its_log_probabilities(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [two_choices]
    fields = {"n": 2, "logprobs": True, "top_logprobs": 1}
    answer = await ask(http, **fields)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["One", "Two"]
    for choice in answer["choices"]:
        assert choice["logprobs"] == {"content": [LOGPROB, LOGPROB], "refusal": None}
        assert choice["finish_reason"] == "stop"

    *events, done = await stream(http, **fields)
    assert done == "[DONE]"
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    roles = [choice["index"] for choice in choices if choice["delta"].get("role")]
    assert roles == [0, 1]
    for index, words in ((0, "One"), (1, "Two")):
        of = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["delta"]["content"] for choice in of) == words
        assert [choice["finish_reason"] for choice in of] == [None, None, "stop"]
        assert of[-1]["logprobs"] == {"content": [LOGPROB], "refusal": None}
    sampling = decoders[0].calls[0].sampling if decoders[0].calls else decoders[1].calls[0].sampling
    assert (sampling.n, sampling.logprobs) == (2, 1)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        (
            {"response_format": {"type": "json_object"}},
            chat_pb2.StructuredOutput(
                json_schema='{"type": "object"}', disable_any_whitespace=True
            ),
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": {"type": "object"}},
                }
            },
            chat_pb2.StructuredOutput(
                json_schema='{"type": "object"}', disable_any_whitespace=True
            ),
        ),
        (
            {"structured_outputs": {"json": {"type": "array"}}},
            chat_pb2.StructuredOutput(json_schema='{"type": "array"}'),
        ),
        (
            {"structured_outputs": {"json": {"type": "array"}, "disable_any_whitespace": True}},
            chat_pb2.StructuredOutput(json_schema='{"type": "array"}', disable_any_whitespace=True),
        ),
        ({"structured_outputs": {"regex": "a+"}}, chat_pb2.StructuredOutput(regex="a+")),
        (
            {"structured_outputs": {"choice": ["a", "b"]}},
            chat_pb2.StructuredOutput(choice=chat_pb2.StringChoices(values=["a", "b"])),
        ),
    ],
)
async def test_what_an_answer_is_held_to(
    http: httpx.AsyncClient,
    decoders: list[FakeDecoder],
    fields: dict[str, Any],
    wanted: chat_pb2.StructuredOutput,
) -> None:
    await ask(http, **fields)
    (call,) = [call for decoder in decoders for call in decoder.calls]
    assert call.sampling.structured_output == wanted


@pytest.mark.parametrize("more_settings", [{"disable_any_whitespace": False}])
@pytest.mark.parametrize(
    ("format_", "wanted"),
    [
        ({"type": "json_object"}, chat_pb2.StructuredOutput(json_object=True)),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
            chat_pb2.StructuredOutput(json_schema="{}"),
        ),
    ],
)
async def test_a_setting_leaves_white_space_to_the_model(
    http: httpx.AsyncClient,
    decoders: list[FakeDecoder],
    format_: dict[str, Any],
    wanted: chat_pb2.StructuredOutput,
) -> None:
    await ask(http, response_format=format_)
    (call,) = [call for decoder in decoders for call in decoder.calls]
    assert call.sampling.structured_output == wanted


async def test_other_ways_to_pick_tokens(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    await ask(http, logit_bias={"5": -100, "6": 1.5}, bad_words=["no"], allowed_token_ids=[5, 6])
    (call,) = [call for decoder in decoders for call in decoder.calls]
    assert dict(call.sampling.logit_bias) == {5: -100, 6: 1.5}
    assert list(call.sampling.bad_words) == ["no"]
    assert list(call.sampling.allowed_token_ids) == [5, 6]
    assert not call.sampling.HasField("logprobs")


async def tells_of_the_prompt(request: decoder_pb2.GenerateRequest) -> Responses:
    told = chat_pb2.Logprob(token_id=7, text="a", logprob=-2, rank=4)
    never = chat_pb2.Logprob(token_id=9, text="b", logprob=-math.inf, rank=1)
    first = chat_pb2.TokenLogprobs()
    rest = chat_pb2.TokenLogprobs(chosen=told, top=[never])
    yield decoder_pb2.GenerateResponse(prompt_logprobs=[first, rest])
    yield decoder_pb2.GenerateResponse(delta=chat_pb2.Choice(text="Hi", token_ids=[4]))


async def test_prompt_logprobs_have_the_form_of_vllms(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [tells_of_the_prompt]
    answer = await ask(http, prompt_logprobs=1, priority=3)
    assert answer["prompt_logprobs"] == [
        None,
        {
            "7": {"logprob": -2.0, "rank": 4, "decoded_token": "a"},
            "9": {"logprob": -9999.0, "rank": 1, "decoded_token": "b"},
        },
    ]
    (call,) = [call for decoder in decoders for call in decoder.calls]
    assert (call.sampling.prompt_logprobs, call.priority) == (1, 3)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"priority": -1}, "priority"),
    ],
)
async def test_what_is_told_of_no_stream_and_who_goes_ahead_of_nobody(
    http: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    response = await http.post(CHAT, json={"messages": HELLO} | fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
