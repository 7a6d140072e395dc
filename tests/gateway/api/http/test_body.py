import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request
from starlette.types import Message

from pixtral_core.concurrency.deadline import Deadline
from pixtral_core.concurrency.shared_limit import SharedLimit
from pixtral_core.errors import Overloaded
from pixtral_core.server import reception
from pixtral_gateway.api.http import body
from pixtral_gateway.api.http.body import Bodies
from pixtral_gateway.api.openai.errors import Refused
from pixtral_gateway.api.openai.request_schema import ChatRequest
from pixtral_gateway.tenancy.tenants import Tenant
from tests.support.gateway_harness import eventually

WHOLE = json.dumps({"messages": [{"role": "user", "content": "a" * 1000}]}).encode()


class Sent:
    """A request whose body comes as far as `piece` was called."""

    def __init__(self) -> None:
        self._messages = asyncio.Queue[Message]()
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "headers": [(b"content-type", b"application/json")],
        }
        self.request = Request(scope, self._messages.get)

    def piece(self, data: bytes, *, is_last: bool = False) -> None:
        self._messages.put_nowait({"type": "http.request", "body": data, "more_body": not is_last})

    async def read(self, bodies: Bodies, tenant: Tenant) -> ChatRequest:
        return await bodies.read(self.request, ChatRequest, Deadline.after(60), tenant.name, tenant)


@pytest.fixture
async def room() -> AsyncIterator[SharedLimit]:
    limit = SharedLimit(8000, refusal="full")
    yield limit
    assert limit.total == 0


async def test_one_that_floods_with_bodies_leaves_a_quarter_to_the_others(
    room: SharedLimit,
) -> None:
    bodies, flood, calm = Bodies(room), Tenant("flood"), Tenant("calm")
    unfinished = [Sent() for _ in range(12)]
    reading = [asyncio.create_task(sent.read(bodies, flood)) for sent in unfinished]
    for sent in unfinished:
        sent.piece(WHOLE[:-1])
    await eventually(lambda: sum(task.done() for task in reading) == 7)
    for task in reading:
        if task.done():
            assert isinstance(task.exception(), Overloaded)

    sent = Sent()
    sent.piece(WHOLE, is_last=True)
    assert (await sent.read(bodies, calm)).messages[0].content == "a" * 1000
    for each in unfinished:
        each.piece(WHOLE[-1:], is_last=True)
    answers = await asyncio.gather(*reading, return_exceptions=True)
    assert sum(isinstance(answer, ChatRequest) for answer in answers) == 5


async def test_a_partys_large_bodies_wait_for_each_other_and_no_other_party_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body, "LARGE_BYTES", 500)
    monkeypatch.setattr(body, "LARGE_BYTES_A_SECOND", 1)
    bodies = Bodies(SharedLimit(80_000, refusal="full"))
    sent = [Sent() for _ in range(5)]
    for each in sent:
        each.piece(WHOLE, is_last=True)
    first, *others = (asyncio.create_task(each.read(bodies, Tenant("flood"))) for each in sent[:4])
    await asyncio.wait_for(first, 60)
    await asyncio.wait_for(sent[4].read(bodies, Tenant("calm")), 60)
    assert not any(each.done() for each in others)
    for other in others:
        other.cancel()


async def test_a_body_that_comes_counts_among_its_tenants_requests(room: SharedLimit) -> None:
    bodies, tenant = Bodies(room), Tenant("a", requests_at_once=1)
    sent = Sent()
    reading = asyncio.create_task(sent.read(bodies, tenant))
    await eventually(lambda: tenant.receiving)
    with pytest.raises(Overloaded) as refused:
        tenant.check_room()
    assert refused.value.reason == "TENANT_LIMIT"
    sent.piece(WHOLE, is_last=True)
    await reading
    tenant.check_room()


async def test_a_body_that_comes_too_slowly_is_not_waited_for(
    room: SharedLimit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "PACE_SECONDS", 0.2)
    monkeypatch.setattr(reception, "PACE_BYTES", 100)
    tenant = Tenant("a")
    sent, stalls = Sent(), Sent()
    stalls.piece(WHOLE[:-1])

    async def trickle() -> None:
        for at in range(0, 2000, 10):
            sent.piece(WHOLE[at : at + 10])
            await asyncio.sleep(0.05)

    trickling = asyncio.create_task(trickle())
    for each in (sent, stalls):
        with pytest.raises(Refused) as refused:
            await each.read(Bodies(room), tenant)
        assert refused.value.status == 408
    trickling.cancel()
    assert tenant.receiving == 0


def body_of(text: str) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text}]}).encode()


@pytest.mark.parametrize(
    "text",
    [
        "1,2,3," * 30_000,
        "[{,]}" * 30_000,
        '{"a": [1, "b\\\\"]},' * 10_000,
        "\\" * 1001 + ",{" * 50_000,
    ],
    ids=["numbers", "brackets", "escaped JSON", "slashes"],
)
async def test_what_looks_like_a_value_in_a_text_is_none(room: SharedLimit, text: str) -> None:
    sent = Sent()
    room.most = 1 << 20
    sent.piece(body_of(text), is_last=True)
    assert (await sent.read(Bodies(room), Tenant("a"))).messages[0].content == text


@pytest.mark.parametrize(
    "data",
    [
        b'{"messages": [' + b'{"a":1},' * 40_000 + b"1]}",
        b'{"messages": [' + b'",",' * 70_000 + b"1]}",
        b'{"messages": [' + b"1.5," * 70_000 + b"1]}",
        b'{"messages": "' + b"\\u00e9" * 2_000_000 + b'"}',
        b'{"messages": "' + b"\\\\" * 2_000_000,
    ],
    ids=["objects", "texts", "numbers", "escapes", "slashes"],
)
async def test_json_that_takes_long_to_parse_is_refused_before(
    room: SharedLimit, data: bytes
) -> None:
    sent = Sent()
    room.most = 1 << 24
    sent.piece(data, is_last=True)
    with pytest.raises(Refused) as refused:
        await sent.read(Bodies(room), Tenant("a"))
    assert (refused.value.status, refused.value.reason) == (413, "BODY_TOO_LARGE")
