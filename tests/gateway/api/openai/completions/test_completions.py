"""Completions of a raw prompt over HTTP: whole, in chunks, of several prompts."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2
from pixtral_core.errors import InvalidRequest
from tests.support.fake_tiers import FakeDecoder, Responses, delta, never_ends, refuses
from tests.support.gateway_harness import Client, eventually

COMPLETIONS = "/v1/completions"


@pytest.fixture
async def client_of_openai(client: Client) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{client.url}/v1", api_key="any", max_retries=0
    ) as made:
        yield made


async def complete(http: httpx.AsyncClient, prompt: Any, **fields: Any) -> dict[str, Any]:
    response = await http.post(COMPLETIONS, json={"prompt": prompt} | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def stream(http: httpx.AsyncClient, prompt: Any, **fields: Any) -> list[dict[str, Any]]:
    response = await http.post(COMPLETIONS, json={"prompt": prompt, "stream": True} | fields)
    assert response.status_code == 200, response.text
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def calls_of(decoders: list[FakeDecoder]) -> list[decoder_pb2.GenerateRequest]:
    return [call for decoder in decoders for call in decoder.calls]


async def tokens_of(http: httpx.AsyncClient, text: str, **fields: Any) -> list[int]:
    response = await http.post("/tokenize", json={"prompt": text} | fields)
    tokens: list[int] = response.json()["tokens"]
    return tokens


async def test_a_text_is_gone_on_from_as_it_stands(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    answer = await complete(http, "The sky is", temperature=0, stop=["."])

    tokens = await tokens_of(http, "The sky is")
    (call,) = calls_of(decoders)
    assert list(call.prompt_token_ids) == tokens
    assert not call.images
    assert call.sampling == chat_pb2.SamplingParams(max_tokens=16, temperature=0, stop=["."])
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1_700_000_000
    assert answer.pop("pixtral")["images"] == []
    assert answer == {
        "object": "text_completion",
        "model": "pixtral-small",
        "choices": [
            {
                "index": 0,
                "text": "Hello world",
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": len(tokens),
            "completion_tokens": 3,
            "total_tokens": len(tokens) + 3,
            "prompt_tokens_details": {"cached_tokens": 3, "image_tokens": 0},
        },
    }


async def test_token_ids_and_a_text_without_its_beginning(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    tokens = await tokens_of(http, "The sky is", add_special_tokens=False)
    await complete(http, [1, 1002, 1003], max_tokens=5)
    await complete(http, "The sky is", add_special_tokens=False)
    sent = [list(call.prompt_token_ids) for call in calls_of(decoders)]
    assert sorted(sent) == sorted([[1, 1002, 1003], tokens])
    assert {call.sampling.max_tokens for call in calls_of(decoders)} == {5, 16}


async def test_token_ids_and_an_id_of_the_clients_own(http: httpx.AsyncClient) -> None:
    tokens = await tokens_of(http, "Hi")
    answer = await complete(http, "Hi", return_token_ids=True, request_id="mine")
    (choice,) = answer["choices"]
    assert answer["id"] == "cmpl-mine"
    assert (choice["prompt_token_ids"], choice["token_ids"]) == (tokens, [1001, 1002, 1003])
    chunks = await stream(http, "Hi", return_token_ids=True)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["prompt_token_ids"] == tokens
    assert [choice["token_ids"] for choice in choices] == [[1001], [1002, 1003]]


async def says_its_prompt(request: decoder_pb2.GenerateRequest) -> Responses:
    for index in range(request.sampling.n or 1):
        made = delta(f"{request.prompt_token_ids[-1]}.{index}", 1001)
        made.delta.index = index
        made.delta.finish_reason = chat_pb2.FINISH_REASON_LENGTH
        yield made


@pytest.mark.parametrize("is_stream", [False, True])
async def test_several_prompts_have_their_choices_in_their_order(
    http: httpx.AsyncClient, decoders: list[FakeDecoder], is_stream: bool
) -> None:
    for decoder in decoders:
        decoder.behaviours = [says_its_prompt]
    prompts = [[1, 1000 + number] for number in range(5)]
    texts = {(n * 2 + i): f"{1000 + n}.{i}" for n in range(5) for i in range(2)}
    if is_stream:
        options = {"include_usage": True}
        *chunks, last = await stream(http, prompts, n=2, stream_options=options)
        assert all(chunk["usage"] is None for chunk in chunks)
        found = {chunk["choices"][0]["index"]: chunk["choices"][0]["text"] for chunk in chunks}
        assert last["choices"] == []
        usage = last["usage"]
    else:
        answer = await complete(http, prompts, n=2)
        found = {choice["index"]: choice["text"] for choice in answer["choices"]}
        assert [choice["index"] for choice in answer["choices"]] == sorted(texts)
        assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
        usage = answer["usage"]
    assert found == texts
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (10, 10)
    assert len({call.request_id for call in calls_of(decoders)}) == 5


async def test_more_prompts_than_permits_are_answered_some_at_a_time(
    http: httpx.AsyncClient, decoders: list[FakeDecoder], max_concurrent_requests: int
) -> None:
    count = 3 * max_concurrent_requests
    answer = await complete(http, ["a"] * count)
    assert len(answer["choices"]) == count


async def test_a_prompt_that_fails_ends_the_others(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [never_ends, refuses(InvalidRequest("sampling.seed", "no"))]
    response = await http.post(COMPLETIONS, json={"prompt": ["a", "b", "c", "d"]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "seed")
    await eventually(lambda: sum(decoder.cancelled for decoder in decoders) > 0)


async def test_a_stream_has_the_usage_of_each_chunk_where_it_is_asked_for(
    http: httpx.AsyncClient,
) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = await stream(http, "Hi", stream_options=options)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hello", " world"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "stop"]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 3]
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 3
    assert last["pixtral"]["images"] == []


async def tells_of_all(request: decoder_pb2.GenerateRequest) -> Responses:
    def told(token_id: int, text: str, logprob: float) -> chat_pb2.Logprob:
        return chat_pb2.Logprob(token_id=token_id, text=text, logprob=logprob, rank=2)

    if request.sampling.HasField("prompt_logprobs"):
        each = [
            chat_pb2.TokenLogprobs(chosen=told(token_id, f"p{i}", -1), top=[told(5, "x", -0.5)])
            for i, token_id in enumerate(request.prompt_token_ids)
        ]
        each[0] = chat_pb2.TokenLogprobs()
        yield decoder_pb2.GenerateResponse(prompt_logprobs=each)
    chosen = chat_pb2.TokenLogprobs(chosen=told(7, "é", -2), top=[told(8, "b", float("-inf"))])
    for text in ("é", "é"):
        yield decoder_pb2.GenerateResponse(
            delta=chat_pb2.Choice(text=text, token_ids=[7], logprobs=[chosen])
        )
    yield decoder_pb2.GenerateResponse(
        delta=chat_pb2.Choice(text="", finish_reason=chat_pb2.FINISH_REASON_LENGTH)
    )


async def test_logprobs_are_lists_of_each_token(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [tells_of_all]
    answer = await complete(http, "Hi", logprobs=1)
    expected = {
        "text_offset": [0, 1],
        "token_logprobs": [-2.0, -2.0],
        "tokens": ["é", "é"],
        "top_logprobs": [{"é": -2.0, "b": -9999.0}] * 2,
    }
    assert answer["choices"][0]["logprobs"] == expected
    chunks = await stream(http, "Hi", logprobs=1)
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [each["text_offset"] for each in told if each] == [[0], [1]]
    assert calls_of(decoders)[0].sampling.logprobs == 1
    with_prompt = await complete(http, "Hi", prompt_logprobs=1)
    first, second, *_ = with_prompt["choices"][0]["prompt_logprobs"]
    assert first is None
    assert {"decoded_token": "p1", "logprob": -1.0, "rank": 2} in second.values()


async def test_tokens_are_named_by_their_ids_where_that_is_asked_for(
    http: httpx.AsyncClient, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [tells_of_all]
    tokens = await tokens_of(http, "Hi there")
    asked = {"logprobs": 1, "return_tokens_as_token_ids": True}
    answer = await complete(http, "Hi there", echo=True, **asked)
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [f"token_id:{each}" for each in (*tokens, 7, 7)]
    assert logprobs["top_logprobs"][-1] == {"token_id:7": -2.0, "token_id:8": -9999.0}
    assert logprobs["text_offset"][:3] == [0, 3, 5]
    chunks = await stream(http, "Hi", **asked)
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [each["tokens"] for each in told if each] == [["token_id:7"]] * 2
    assert [each["text_offset"] for each in told if each] == [[0], [1]]


@pytest.mark.parametrize("as_ids", [False, True])
async def test_an_echo_has_the_prompt_and_its_logprobs(
    http: httpx.AsyncClient, decoders: list[FakeDecoder], as_ids: bool
) -> None:
    for decoder in decoders:
        decoder.behaviours = [tells_of_all]
    tokens = await tokens_of(http, "Hi there")
    prompt: Any = tokens if as_ids else "Hi there"
    answer = await complete(http, prompt, echo=True, logprobs=1)
    (choice,) = answer["choices"]
    assert choice["text"] == ("<s>Hi there" if as_ids else "Hi there") + "éé"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"][:2] == ["<s>", "p1"]
    assert logprobs["token_logprobs"] == [None, *[-1.0] * (len(tokens) - 1), -2.0, -2.0]
    assert logprobs["text_offset"][:3] == [0, 3, 5]
    assert logprobs["top_logprobs"][:2] == [None, {"p1": -1.0, "x": -0.5}]

    alone = await complete(http, prompt, echo=True, logprobs=0, max_tokens=0)
    (choice,) = alone["choices"]
    assert choice["text"] == ("<s>Hi there" if as_ids else "Hi there")
    assert len(choice["logprobs"]["tokens"]) == len(tokens)
    assert {call.sampling.max_tokens for call in calls_of(decoders)} == {16, 1}


async def test_an_echo_comes_first_in_a_stream(http: httpx.AsyncClient) -> None:
    chunks = await stream(http, "Hi there", echo=True)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hi thereHello", " world"]


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    ("", {}, "prompt"),
    ([], {}, "prompt"),
    ([[]], {}, "prompt.0"),
    (["a", ""], {}, "prompt.1"),
    ([1, 99_999_999], {}, "prompt"),
    ([[1], [99_999_999]], {}, "prompt.1"),
    ([1, -1], {}, "prompt"),
    ([1, "a"], {}, "prompt"),
    (None, {}, "prompt"),
    (["a"] * 1025, {}, "prompt"),
    ([1001] * 32_768, {}, "prompt"),
    ("a", {"suffix": "b"}, "suffix"),
    ("a", {"max_tokens": 0}, "max_tokens"),
    ("a", {"echo": True, "logprobs": 1, "stream": True}, "echo"),
    ("a", {"logprobs": 21}, "logprobs"),
    ("a", {"echo": True, "logprobs": 21}, "logprobs"),
    ("a", {"best_of": 2}, "best_of"),
    ("a", {"use_beam_search": True}, "use_beam_search"),
    ("a", {"prompt_embeds": "AAAA"}, "prompt_embeds"),
]


async def test_a_refusal_names_its_field(http: httpx.AsyncClient) -> None:
    for prompt, fields, param in REFUSED:
        response = await http.post(COMPLETIONS, json={"prompt": prompt} | fields)
        found = response.json()["error"]["param"]
        assert (response.status_code, found) == (400, param), (fields, response.text)


async def test_openais_client_completes(client_of_openai: openai.AsyncOpenAI) -> None:
    answer = await client_of_openai.completions.create(
        model="pixtral-small", prompt=["Hi", "Ho"], max_tokens=3, suffix=None
    )
    assert [choice.text for choice in answer.choices] == ["Hello world"] * 2
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    chunks = await client_of_openai.completions.create(
        model="pixtral-small", prompt=[1, 1001], stream=True
    )
    assert "".join([chunk.choices[0].text async for chunk in chunks]) == "Hello world"
