"""Traces as a receiver gets them; what they cost where there is none."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2

from pixtral_core.concurrency.single_flight import Flight, SingleFlight
from pixtral_core.errors import InvalidRequest
from pixtral_core.server.channel import open_channel
from pixtral_core.server.process import running
from pixtral_core.settings import ProcessSettings
from pixtral_core.telemetry.request_log import current_span, first_token, note, outgoing
from pixtral_core.telemetry.tracing import OFF
from tests.support.echo_child import ROOT, process
from tests.support.echo_tier import Context, EchoStub, EchoTier, echo, health_stub, read_message
from tests.support.stack.span_collector import Collector, SpanSeen, collector

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SERVER, CLIENT = 2, 3


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "TRACES_PROTOCOL"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    for name in ("SDK_DISABLED", "TRACES_EXPORTER", "TRACES_SAMPLER", "SERVICE_NAME"):
        monkeypatch.delenv(f"OTEL_{name}", raising=False)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collector() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


async def spans(receiver: Collector, *names: str) -> dict[str, SpanSeen]:
    """The spans by name, once each of the names is there."""
    found = await asyncio.to_thread(
        receiver.wait, lambda seen: set(names) <= {span.name for span in seen}
    )
    return {span.name: span for span in found}


async def work(request: StringValue, context: Context) -> StringValue:
    span = current_span()
    if request.value == "!":
        with span.child("check"):
            raise InvalidRequest("value", "a secret")
    if request.value == "?":
        raise KeyError("a secret")
    with span.child("read", letters=len(request.value)):
        pass
    now = time.monotonic()
    span.part("queue", now - 0.5, now - 0.25)
    first_token()
    note(prompt_tokens=3, completion_tokens=2, finish_reason="stop", letters=1)
    return request


async def test_a_call_is_a_span_with_its_parts_in_the_trace_of_whoever_calls(
    received: Collector,
) -> None:
    headers = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),)
    async with echo(EchoTier(work)) as stub:
        await stub.unary(StringValue(value="abc"), metadata=headers)
        found = await spans(received, "test.Echo/Unary", "read", "queue")
    call = found["test.Echo/Unary"]
    assert {span.trace_id for span in found.values()} == {TRACE_ID}
    assert {span.service for span in found.values()} == {"pixtral-echo"}
    assert (call.kind, call.parent_id, call.is_error) == (SERVER, PARENT_ID, False)
    assert call.events == ("first_token",)
    seconds = call.attributes.pop("gen_ai.response.time_to_first_chunk")
    assert 0 <= seconds <= call.ended - call.began
    assert call.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "test.Echo/Unary",
        "rpc.response.status_code": "OK",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.response.finish_reasons": ["stop"],
        "pixtral.letters": 1,
    }
    assert found["read"].parent_id == found["queue"].parent_id == call.span_id
    assert found["read"].attributes == {"pixtral.letters": 3}
    assert found["queue"].ended - found["queue"].began == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("value", "code", "is_fault"), [("!", "INVALID_ARGUMENT", False), ("?", "INTERNAL", True)]
)
async def test_a_failure_is_told_without_its_words(
    received: Collector, value: str, code: str, is_fault: bool
) -> None:
    async with echo(EchoTier(work)) as stub:
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.unary(StringValue(value=value))
        found = await spans(received, "test.Echo/Unary")
    call = found["test.Echo/Unary"]
    assert call.attributes["rpc.response.status_code"] == code
    assert call.is_error is is_fault
    if value == "!":
        assert found["check"].attributes == {"error.type": "INVALID_FIELD"}
        assert found["check"].is_error
    assert b"secret" not in received.raw


async def test_a_trace_goes_on_in_the_next_tier(received: Collector) -> None:
    async def behind(request: StringValue, context: Context) -> AsyncIterator[StringValue]:
        yield request

    async with echo(EchoTier(stream=behind)) as next_tier:

        async def front(request: StringValue, context: Context) -> StringValue:
            with current_span().child("ask", is_call=True, peer="[::1]:50052") as span:
                return await read_message(next_tier.stream(request, metadata=outgoing(span)))

        async with echo(EchoTier(front)) as stub:
            await stub.unary(StringValue(value="a"))
            found = await spans(received, "test.Echo/Unary", "ask", "test.Echo/Stream")
    front_span, ask, back_span = (
        found[name] for name in ("test.Echo/Unary", "ask", "test.Echo/Stream")
    )
    assert front_span.parent_id == ""
    assert (ask.kind, ask.parent_id) == (CLIENT, front_span.span_id)
    assert ask.attributes == {"server.address": "::1", "server.port": 50052}
    assert (back_span.parent_id, back_span.trace_id) == (ask.span_id, front_span.trace_id)


async def waiters(flight: Flight[None], number: int) -> None:
    async with asyncio.timeout(60):
        while flight.waiters != number:
            await asyncio.sleep(0.005)


async def test_work_that_calls_share_is_in_the_first_ones_trace_and_the_others_link_to_it(
    received: Collector,
) -> None:
    flights: SingleFlight[str, None] = SingleFlight()
    begun, release = asyncio.Event(), asyncio.Event()

    async def shared() -> None:
        with current_span().child("shared"):
            begun.set()
            await release.wait()

    async def ask(request: StringValue, context: Context) -> StringValue:
        current_span().set(caller=request.value)
        await flights.run("key", shared)
        return request

    async with echo(EchoTier(ask)) as stub:
        first = asyncio.ensure_future(stub.unary(StringValue(value="first")))
        await asyncio.wait_for(begun.wait(), 60)
        second = asyncio.ensure_future(stub.unary(StringValue(value="second")))
        (flight,) = flights._flights.values()
        await waiters(flight, 2)
        # Whoever began it leaves: the work goes on for the other, and still is not its own.
        first.cancel()
        await waiters(flight, 1)
        release.set()
        await second
        found = await asyncio.to_thread(received.wait, lambda seen: len(seen) == 3)
    calls = {span.attributes["pixtral.caller"]: span for span in found if span.kind == SERVER}
    (part,) = (span for span in found if span.name == "shared")
    assert part.parent_id == calls["first"].span_id
    assert part.trace_id == calls["first"].trace_id != calls["second"].trace_id
    assert calls["second"].links == (calls["first"].span_id,)
    assert calls["first"].links == ()
    assert calls["first"].attributes["rpc.response.status_code"] == "CANCELLED"


async def test_health_checks_are_not_traced(received: Collector) -> None:
    async with (
        running(EchoTier(work), ProcessSettings()) as addresses,
        open_channel(addresses.grpc, None) as channel,
    ):
        await health_stub(channel).Check(health_pb2.HealthCheckRequest())
        await EchoStub(channel).unary(StringValue(value="a"))
        await spans(received, "test.Echo/Unary")
    assert not [span.name for span in received.spans if "Health" in span.name]


@pytest.mark.parametrize(
    ("sampler", "flag", "is_sent"),
    [("parentbased_always_on", "00", False), ("always_off", "01", False), ("", "01", True)],
)
async def test_the_sampler_is_the_standard_ones(
    received: Collector, monkeypatch: pytest.MonkeyPatch, sampler: str, flag: str, is_sent: bool
) -> None:
    if sampler:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    handed_on: list[tuple[tuple[str, str], ...]] = []

    async def unary(request: StringValue, context: Context) -> StringValue:
        with current_span().child("ask", is_call=True) as span:
            handed_on.append(outgoing(span))
        return request

    async with echo(EchoTier(unary)) as stub:
        await stub.unary(
            StringValue(), metadata=(("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-{flag}"),)
        )
    # The server is closed, and has sent what it had to.
    assert bool(received.spans) is is_sent
    # Other tiers are told of the decision, and do not begin a trace of their own.
    (headers,) = handed_on
    assert dict(headers)["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert dict(headers)["traceparent"].endswith("-01" if is_sent else "-00")


async def test_headers_that_are_no_trace_begin_a_new_one(received: Collector) -> None:
    async with echo(EchoTier(work)) as stub:
        await stub.unary(StringValue(value="a"), metadata=(("traceparent", "00-nonsense"),))
        found = await spans(received, "test.Echo/Unary")
    assert found["test.Echo/Unary"].parent_id == ""


@pytest.mark.usefixtures("received")
@pytest.mark.parametrize("state", ["vendor=1,other=2", "x=" + "y" * 250 + ",z=" + "y" * 260])
async def test_a_callers_state_goes_on_unless_it_is_long(state: str) -> None:
    handed_on: list[dict[str, str]] = []

    async def unary(request: StringValue, context: Context) -> StringValue:
        handed_on.append(dict(outgoing(current_span())))
        return request

    headers = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"), ("tracestate", state))
    async with echo(EchoTier(unary)) as stub:
        await stub.unary(StringValue(), metadata=headers)
    assert handed_on[0].get("tracestate") == (state if len(state) <= 512 else None)
    assert TRACE_ID in handed_on[0]["traceparent"]


async def test_the_service_has_the_name_that_it_is_given(
    received: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "vision-gateway")
    async with echo(EchoTier(work)) as stub:
        await stub.unary(StringValue(value="a"))
        found = await spans(received, "test.Echo/Unary")
    assert found["test.Echo/Unary"].service == "vision-gateway"


@pytest.mark.parametrize("name", ["OTEL_SDK_DISABLED=true", "OTEL_TRACES_EXPORTER=none", ""])
async def test_without_an_endpoint_or_where_it_is_switched_off_there_are_no_spans(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        monkeypatch.setenv(*name.split("=", 1))
    seen = []

    async def unary(request: StringValue, context: Context) -> StringValue:
        seen.append(current_span())
        return request

    async with echo(EchoTier(unary)) as stub:
        await stub.unary(StringValue())
    assert seen == [OFF]
    assert OFF.child("part") is OFF


def test_where_it_is_off_the_exporter_is_not_even_imported() -> None:
    code = (
        "import sys, pixtral_gateway.process;"
        "from pixtral_core.telemetry.tracing import start_tracing; start_tracing('x');"
        "sys.exit(any(name.startswith('opentelemetry.exporter') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", ["PROTOCOL", "TRACES_PROTOCOL"])
async def test_a_protocol_that_is_not_spoken_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", "http/protobuf")
    async with process(tmp_path) as served:
        code, log = await served.ended()
    assert code == 1
    assert f"cannot start: OTEL_EXPORTER_OTLP_{name} is 'http/protobuf'" in log
    assert "Traceback" not in log


@pytest.fixture(params=["refuses", "never answers"])
def gone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        # Bound and not listening, connections are refused; listening, nobody ever answers.
        taken = stack.enter_context(socket.socket())
        taken.bind(("127.0.0.1", 0))
        if request.param == "never answers":
            taken.listen()
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        yield


@pytest.mark.usefixtures("gone")
async def test_without_its_receiver_a_process_answers_and_ends_as_ever(
    tmp_path: Path,
) -> None:
    async with process(tmp_path, "--log-format", "json") as served:
        addresses = await served.addresses()
        async with open_channel(addresses["grpc"], None) as channel:
            served.release.touch()
            for _ in range(20):
                call = EchoStub(channel).stream(StringValue(), wait_for_ready=True)
                values = [message.value async for message in call]
                assert values == ["first", "last"]
        served.child.terminate()
        code, log = await served.ended()
    assert code == 0
    assert "Traceback" not in log
    assert log.count('"code": "OK"') == 20
