"""The one line that each call leaves in the log, and the id that ties the tiers' lines together."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextvars import copy_context

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2
from hypothesis import given
from hypothesis import strategies as st

from pixtral_core.errors import InvalidRequest
from pixtral_core.server.channel import open_channel
from pixtral_core.server.process import running
from pixtral_core.settings import ProcessSettings
from pixtral_core.telemetry.logs import JsonFormatter, TextFormatter
from pixtral_core.telemetry.request_log import REQUEST_ID, Call, current, note, outgoing
from pixtral_core.telemetry.tracing import OFF, Tracer
from tests.support.echo_tier import SERVICE, Context, EchoStub, EchoTier, echo, health_stub
from tests.support.log_lines import Lines, logged


@pytest.fixture
def lines() -> Iterator[Lines]:
    with logged() as seen:
        yield seen


# In two pieces, for a traceback shows the line.
async def upper(request: StringValue, context: Context) -> StringValue:
    if request.value == "!":
        raise InvalidRequest("value", "a sec" + "ret")
    if request.value == "?":
        raise KeyError("another sec" + "ret")
    note(letters=len(request.value), seconds_of_work=0.12345678)
    return StringValue(value=request.value.upper())


async def letters(request: StringValue, context: Context) -> AsyncIterator[StringValue]:
    for letter in request.value:
        yield StringValue(value=letter)
    await asyncio.Event().wait()


async def test_a_call_leaves_one_line_and_its_id_with_the_client(lines: Lines) -> None:
    async with echo(EchoTier(upper)) as stub:
        call = stub.unary(StringValue(value="abc"), metadata=((REQUEST_ID, "order-66:a.b_c"),))
        await call
        trailing = dict(await call.trailing_metadata() or ())
        await lines.become(lambda seen: seen.calls)
    assert trailing[REQUEST_ID] == "order-66:a.b_c"
    (line,) = lines.calls
    assert line.pop("time")
    assert line.pop("seconds") >= 0
    assert line == {
        "level": "info",
        "logger": "pixtral_core.telemetry.request_log",
        "message": "call",
        "request_id": "order-66:a.b_c",
        "method": "test.Echo/Unary",
        "code": "OK",
        "letters": 3,
        "seconds_of_work": 0.123457,
    }
    (text,) = (text for text in lines.text if " pixtral_core.telemetry.request_log: " in text)
    assert " call request_id=order-66:a.b_c method=test.Echo/Unary code=OK seconds=" in text
    assert text.endswith(" letters=3 seconds_of_work=0.123457")


@pytest.mark.parametrize(("value", "code"), [("!", "INVALID_ARGUMENT"), ("?", "INTERNAL")])
async def test_a_call_that_fails_is_told_by_its_code_and_its_id_comes_with_the_status(
    lines: Lines, value: str, code: str
) -> None:
    async with echo(EchoTier(upper)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.unary(StringValue(value=value), metadata=((REQUEST_ID, "mine"),))
        await lines.become(lambda seen: seen.calls)
    assert dict(failed.value.trailing_metadata())[REQUEST_ID] == "mine"
    assert "grpc-status-details-bin" in dict(failed.value.trailing_metadata())
    (line,) = lines.calls
    assert (line["code"], line["request_id"]) == (code, "mine")
    assert line.get("reason") == ("INVALID_FIELD" if value == "!" else None)
    assert "secret" not in "".join(lines.text) + json.dumps(lines.json)
    # The same id finds all other lines that were logged on the way.
    assert {entry["request_id"] for entry in lines.json if entry["level"] == "error"} <= {"mine"}


async def test_a_call_that_is_cancelled_leaves_its_line(lines: Lines) -> None:
    async with echo(EchoTier(stream=letters)) as stub:
        call = stub.stream(StringValue(value="a"))
        await call.read()
        call.cancel()
        await lines.become(lambda seen: seen.calls)
    assert lines.calls[0]["code"] == "CANCELLED"


@pytest.mark.parametrize(
    "given_id",
    ["", "with space", "a=b", 'x","level":"error', "%0a", "x" * 129, "~", "{}", "../etc"],
)
async def test_an_id_that_is_not_well_formed_is_replaced(lines: Lines, given_id: str) -> None:
    async with echo(EchoTier(upper)) as stub:
        call = stub.unary(StringValue(value="a"), metadata=((REQUEST_ID, given_id),))
        await call
        await lines.become(lambda seen: seen.calls)
        told = dict(await call.trailing_metadata() or ())[REQUEST_ID]
    assert told == lines.calls[0]["request_id"] != given_id
    assert len(str(told)) == 32
    assert given_id == "" or given_id not in "".join(lines.text)


@given(st.text())
def test_no_text_of_a_client_can_break_out_of_a_line(text: str) -> None:
    def check() -> None:
        call = Call.begin("a.B/C", ((REQUEST_ID, text),), Tracer())
        record = logging.LogRecord("x", logging.INFO, "", 0, "call", (), None)
        record.facts = {"name": text}
        for line in (JsonFormatter().format(record), TextFormatter().format(record)):
            assert len(line.splitlines()) == 1
            assert call.request_id in line
        assert call.request_id.isascii()

    # The call is this test's alone.
    copy_context().run(check)


async def test_calls_at_once_keep_their_facts_apart(lines: Lines) -> None:
    both_in = asyncio.Barrier(2)

    async def work(request: StringValue, context: Context) -> StringValue:
        await both_in.wait()
        await asyncio.gather(asyncio.create_task(asyncio.sleep(0)))
        note(letters=len(request.value))
        return request

    async with echo(EchoTier(work)) as stub:
        await asyncio.gather(
            *(
                stub.unary(StringValue(value="x" * n), metadata=((REQUEST_ID, f"id-{n}"),))
                for n in (1, 2)
            )
        )
        await lines.become(lambda seen: len(seen.calls) == 2)
    assert {(line["request_id"], line["letters"]) for line in lines.calls} == {
        ("id-1", 1),
        ("id-2", 2),
    }


async def test_what_is_called_all_the_time_is_not_logged(lines: Lines) -> None:
    async def collect(requests: AsyncIterator[StringValue], context: Context) -> StringValue:
        return StringValue()

    tier = EchoTier(upper, collect=collect)
    assert f"{SERVICE}/Collect" in tier.quiet
    async with (
        running(tier, ProcessSettings()) as addresses,
        open_channel(addresses.grpc, None) as channel,
    ):
        await health_stub(channel).Check(health_pb2.HealthCheckRequest())
        await EchoStub(channel).collect(iter(()))
        await EchoStub(channel).unary(StringValue(value="a"))
        await lines.become(lambda seen: seen.calls)
    assert [line["method"] for line in lines.calls] == ["test.Echo/Unary"]


async def test_an_id_goes_on_to_the_next_tier() -> None:
    async def behind(request: StringValue, context: Context) -> StringValue:
        call = current()
        assert call is not None
        return StringValue(value=call.request_id)

    async with echo(EchoTier(behind)) as next_tier:

        async def front(request: StringValue, context: Context) -> StringValue:
            return await next_tier.unary(request, metadata=outgoing(OFF))

        async with echo(EchoTier(front)) as stub:
            answer = await stub.unary(StringValue(), metadata=((REQUEST_ID, "mine"),))
    assert answer.value == "mine"
