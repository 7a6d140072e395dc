"""Slices of `make fuzz`, before stand-ins for the other tiers."""

import httpx
import pytest

from pixtral_core.errors import NotFound
from tests.fuzz.by_schema import Sent, fuzz_by_schema
from tests.fuzz.calls import (
    Limit,
    chat_methods,
    fuzz_grpc,
    fuzz_http,
    fuzz_openai,
    problem_of,
    replayed,
)
from tests.support.gateway_harness import Client, permits
from tests.support.http_chat import CHAT


async def test_whatever_the_body_openais_error_or_an_answer_comes_back(client: Client) -> None:
    found = await fuzz_openai(client.url, 3, Limit(count=600))
    assert not found.bad
    assert {f"{CHAT} 200", f"{CHAT} 400"} <= set(found.endings)
    assert permits() == 0


async def test_what_is_made_of_the_schema_is_answered_by_it(client: Client) -> None:
    found = await fuzz_by_schema(client.url, 3, rounds=1)
    assert not found.bad
    assert {f"POST {CHAT} 200", f"POST {CHAT} 400", "POST /tokenize 200"} <= set(found.endings)
    assert permits() == 0


async def test_an_answer_that_is_not_by_the_schema_is_found_out(
    client: Client, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def echoing(asked: str, *_: object) -> str:
        if "xylophone" in asked:
            raise NotFound(f"there is no {asked}", "MODEL_NOT_FOUND")
        return ""

    with monkeypatch.context() as patch:
        patch.setattr("pixtral_gateway.api.http.front.adapter_of", echoing)
        found = await fuzz_by_schema(client.url, 3, rounds=1, path="/v1/models/{model}")
        problem, kept = found.bad[0]
        assert "repeats what was sent" in problem
        assert await Sent.read(kept).problem_again(http) == problem
    assert await Sent.read(kept).problem_again(http) is None


async def test_whatever_comes_over_a_connection_is_refused_or_answered(client: Client) -> None:
    found = await fuzz_http(client.url, 3, Limit(count=600))
    assert not found.bad
    assert {"raw 200", "raw 400"} <= set(found.endings)


async def test_whatever_the_message_its_status_is_one_to_act_upon(client: Client) -> None:
    found = await fuzz_grpc(client.channel, chat_methods(), 3, Limit(count=600))
    assert not found.bad
    assert {"Complete OK", "Complete INVALID_ARGUMENT", "PutImage OK"} <= set(found.endings)
    assert permits() == 0


@pytest.mark.parametrize("kept", replayed("schema"))
async def test_what_was_not_by_the_schema_once_is(http: httpx.AsyncClient, kept: bytes) -> None:
    assert await Sent.read(kept).problem_again(http) is None


@pytest.mark.parametrize("body", replayed("openai"))
async def test_what_was_broken_once_holds(http: httpx.AsyncClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    assert problem_of(await http.post(CHAT, content=body, headers=headers)) is None
