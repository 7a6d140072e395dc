import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from prometheus_client import REGISTRY

from pixtral_core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    Unauthenticated,
    from_rpc_error,
)
from pixtral_core.server import grpc_interceptor
from pixtral_core.server.channel import open_channel
from pixtral_core.server.grpc_interceptor import EarlyCheck
from pixtral_core.server.process import running
from pixtral_core.settings import ProcessSettings
from tests.support.echo_tier import (
    SERVICE,
    Context,
    EchoStub,
    EchoTier,
    StreamCall,
    echo,
    read_message,
)


class Counts:
    """How far the server's counters moved since this was made."""

    def __init__(self, kind: str, method: str) -> None:
        self._labels = {"grpc_type": kind, "grpc_service": SERVICE, "grpc_method": method}
        self._before = self._read()

    def _read(self) -> dict[str, float]:
        found = {"started": self._sample("grpc_server_started_total", {})}
        for code in grpc.StatusCode:
            found[code.name] = self._sample("grpc_server_handled_total", {"grpc_code": code.name})
        found["timed"] = self._sample("grpc_server_handling_seconds_count", {})
        return found

    def _sample(self, name: str, more: dict[str, str]) -> float:
        return REGISTRY.get_sample_value(name, self._labels | more) or 0.0

    def moved(self) -> dict[str, float]:
        now = self._read()
        return {k: now[k] - self._before[k] for k in now if now[k] != self._before[k]}

    async def become(self, expected: dict[str, float]) -> None:
        async with asyncio.timeout(60):
            while self.moved() != expected:
                await asyncio.sleep(0.005)


async def upper(request: StringValue, context: Context) -> StringValue:
    return StringValue(value=request.value.upper())


async def letters(request: StringValue, context: Context) -> AsyncIterator[StringValue]:
    for letter in request.value:
        if letter == "!":
            raise InvalidRequest("value", "must not hold !")
        yield StringValue(value=letter)


async def join(requests: AsyncIterator[StringValue], context: Context) -> StringValue:
    return StringValue(value="".join([request.value async for request in requests]))


async def reply(
    requests: AsyncIterator[StringValue], context: Context
) -> AsyncIterator[StringValue]:
    async for request in requests:
        yield StringValue(value=request.value.upper())


async def sent(*values: str) -> AsyncIterator[StringValue]:
    for value in values:
        yield StringValue(value=value)


async def test_calls_of_every_kind_are_answered_and_counted() -> None:
    kinds = {
        "unary": "Unary",
        "server_stream": "Stream",
        "client_stream": "Collect",
        "bidi_stream": "Chat",
    }
    counts = [Counts(kind, method) for kind, method in kinds.items()]
    async with echo(EchoTier(upper, letters, join, reply)) as stub:
        assert (await stub.unary(StringValue(value="a"))).value == "A"
        assert [r.value async for r in stub.stream(StringValue(value="abc"))] == ["a", "b", "c"]
        assert (await stub.collect(sent("a", "b"))).value == "ab"
        assert [r.value async for r in stub.chat(sent("a", "b"))] == ["A", "B"]
        for count in counts:
            await count.become({"started": 1, "OK": 1, "timed": 1})


async def test_an_error_amid_a_stream_comes_after_what_was_sent() -> None:
    counts = Counts("server_stream", "Stream")
    async with echo(EchoTier(stream=letters)) as stub:
        call = stub.stream(StringValue(value="ab!c"))
        assert [(await read_message(call)).value for _ in "ab"] == ["a", "b"]
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call.read()
        assert from_rpc_error(failed.value).violations == (("value", "must not hold !"),)
        await counts.become({"started": 1, "INVALID_ARGUMENT": 1, "timed": 1})


async def test_an_error_of_a_client_stream_is_told() -> None:
    async def collect(requests: AsyncIterator[StringValue], context: Context) -> StringValue:
        async for request in requests:
            raise InvalidRequest("value", f"{request.value} is one too many")
        return StringValue()

    async with echo(EchoTier(collect=collect)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.collect(sent("this"))
    assert from_rpc_error(failed.value).violations == (("value", "this is one too many"),)


@pytest.mark.parametrize("kind", ["unary", "stream"])
@pytest.mark.parametrize("end", ["CANCELLED", "DEADLINE_EXCEEDED"])
async def test_a_call_that_the_client_ends_is_cancelled_and_counted_as_such(
    kind: str, end: str
) -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def unary(request: StringValue, context: Context) -> StringValue:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return StringValue()

    async def stream(request: StringValue, context: Context) -> AsyncIterator[StringValue]:
        yield await unary(request, context)

    counts = Counts("server_stream" if kind == "stream" else "unary", kind.title())
    async with echo(EchoTier(unary, stream)) as stub:
        deadline = 0.3 if end == "DEADLINE_EXCEEDED" else 60
        call = getattr(stub, kind)(StringValue(), timeout=deadline)
        reading = asyncio.ensure_future(call.read() if kind == "stream" else call.code())
        async with asyncio.timeout(60):
            await entered.wait()
            if end == "CANCELLED":
                call.cancel()
            await left.wait()
        await asyncio.wait((reading,))
        assert (await call.code()).name == end
        reading.cancelled() or reading.exception()
        await counts.become({"started": 1, end: 1, "timed": 1})


async def test_a_stream_that_nobody_reads_is_closed_when_the_client_leaves() -> None:
    left = asyncio.Event()

    async def flood(request: StringValue, context: Context) -> AsyncIterator[StringValue]:
        try:
            while True:
                yield StringValue(value="x" * 100_000)
        finally:
            left.set()

    counts = Counts("server_stream", "Stream")
    async with echo(EchoTier(stream=flood)) as stub:
        call = stub.stream(StringValue())
        await call.read()
        call.cancel()
        async with asyncio.timeout(60):
            await left.wait()
        await counts.become({"started": 1, "CANCELLED": 1, "timed": 1})


@pytest.mark.parametrize("method", ["Unary", "Stream"])
async def test_what_is_checked_early_is_refused_before_its_message_has_come(method: str) -> None:
    class Full(EchoTier):
        is_full = True

        def early_checks(self) -> dict[str, EarlyCheck]:
            return {f"{SERVICE}/{method}": self._check}

        def _check(self, context: Context) -> None:
            if self.is_full:
                raise Overloaded("no room")

    tier = Full(upper, letters)
    counts = Counts("unary" if method == "Unary" else "server_stream", method)
    async with (
        running(tier, ProcessSettings()) as addresses,
        open_channel(addresses.grpc, None) as channel,
    ):
        # A client that sends no message, and would wait for an answer for ever.
        call: Any = channel.stream_stream(f"/{SERVICE}/{method}")()
        async with asyncio.timeout(60):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call.read()
        assert isinstance(from_rpc_error(failed.value), Overloaded)
        await counts.become({"started": 1, "RESOURCE_EXHAUSTED": 1, "timed": 1})
        tier.is_full = False
        stub = EchoStub(channel)
        if method == "Unary":
            assert (await stub.unary(StringValue(value="a"))).value == "A"
        else:
            assert [r.value async for r in stub.stream(StringValue(value="ab"))] == ["a", "b"]
        call = channel.stream_stream(f"/{SERVICE}/{method}")()
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call.read()
        assert from_rpc_error(failed.value).reason == "MALFORMED_MESSAGE"


async def test_a_call_ends_only_when_its_generator_has_cleaned_up() -> None:
    leaving, release = asyncio.Event(), asyncio.Event()

    async def flood(request: StringValue, context: Context) -> AsyncIterator[StringValue]:
        try:
            while True:
                yield StringValue(value="x" * 100_000)
        finally:
            leaving.set()
            await release.wait()

    counts = Counts("server_stream", "Stream")
    async with echo(EchoTier(stream=flood)) as stub:
        call = stub.stream(StringValue())
        await call.read()
        call.cancel()
        async with asyncio.timeout(60):
            await leaving.wait()
        assert counts.moved() == {"started": 1}
        release.set()
        await counts.become({"started": 1, "CANCELLED": 1, "timed": 1})


async def test_a_cancellation_that_is_not_the_calls_own_is_an_internal_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def unary(request: StringValue, context: Context) -> StringValue:
        shared: asyncio.Future[StringValue] = asyncio.get_running_loop().create_future()
        shared.cancel()
        return await shared

    async with echo(EchoTier(unary=unary)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.unary(StringValue(), timeout=60)
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert any(record.levelno == logging.ERROR for record in caplog.records)


async def read_on(call: StreamCall) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_call_that_the_tier_gives_up_ends_with_its_reason_though_nobody_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grpc_interceptor, "GIVE_UP_SECONDS", 0.5)
    handler: list[asyncio.Task[Any]] = []

    async def flood(request: StringValue, context: Context) -> AsyncIterator[StringValue]:
        task = asyncio.current_task()
        assert task is not None
        handler.append(task)
        while True:
            yield StringValue(value="x" * 100_000)

    counts = Counts("server_stream", "Stream")
    async with echo(EchoTier(stream=flood)) as stub:
        call = stub.stream(StringValue())
        await call.read()
        handler[0].cancel(DeadlineExceeded())
        await counts.become({"started": 1, "DEADLINE_EXCEEDED": 1, "timed": 1})
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await asyncio.wait_for(read_on(call), 60)
    assert from_rpc_error(failed.value).code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_bytes_that_are_no_message_are_the_clients_fault() -> None:
    async def one(data: bytes) -> AsyncIterator[bytes]:
        yield data

    counts = Counts("unary", "Unary")
    async with echo(EchoTier(unary=upper, collect=join)) as stub:
        for call in (stub.raw_unary(b"\xff\xff"), stub.raw_collect(one(b"\xff\xff"))):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call
            assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert from_rpc_error(failed.value).reason == "MALFORMED_MESSAGE"
        await counts.become({"started": 1, "INVALID_ARGUMENT": 1, "timed": 1})


async def test_unknown_methods_are_refused_and_make_no_labels() -> None:
    async with echo(EchoTier(unary=upper)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.unknown(StringValue())
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
    samples = (sample for metric in REGISTRY.collect() for sample in metric.samples)
    assert "Unknown" not in {sample.labels.get("grpc_method") for sample in samples}


async def test_a_servicers_own_status_is_relayed_and_counted() -> None:
    async def unary(request: StringValue, context: Context) -> None:
        await context.abort(grpc.StatusCode.ABORTED, "own words")

    counts = Counts("unary", "Unary")
    async with echo(EchoTier(unary=unary)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.unary(StringValue())
        assert failed.value.details() == "own words"
        await counts.become({"started": 1, "ABORTED": 1, "timed": 1})


class Strict(EchoTier):
    """Refuses a caller that shows no key."""

    def early_checks(self) -> dict[str, EarlyCheck]:
        def check(context: Context) -> None:
            if ("key", "right") not in (context.invocation_metadata() or ()):
                raise Unauthenticated("who are you?", "API_KEY_MISSING")

        return {f"{SERVICE}/{name}": check for name in ("Unary", "Stream", "Collect")}


@pytest.mark.parametrize("method", ["Unary", "Stream", "Collect"])
async def test_what_is_refused_early_is_refused_before_its_message_comes(method: str) -> None:
    settings = ProcessSettings()
    async with (
        running(Strict(upper, letters, join), settings) as addresses,
        open_channel(addresses.grpc, None) as channel,
    ):
        # To the client a stream, so that it can begin without a message.
        call: Any = channel.stream_stream(f"/{SERVICE}/{method}")(timeout=60)
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED

        key = (("key", "right"),)
        stub, asked = EchoStub(channel), StringValue(value="abc")
        match method:
            case "Unary":
                assert (await stub.unary(asked, metadata=key)).value == "ABC"
            case "Stream":
                said = [each.value async for each in stub.stream(asked, metadata=key)]
                assert said == ["a", "b", "c"]
            case _:
                assert (await stub.collect(iter([asked, asked]), metadata=key)).value == "abcabc"


@pytest.mark.parametrize("method", ["Unary", "Stream"])
async def test_a_call_that_was_let_in_and_has_no_message_is_malformed(method: str) -> None:
    async with (
        running(Strict(upper, letters), ProcessSettings()) as addresses,
        open_channel(addresses.grpc, None) as channel,
    ):
        call: Any = channel.stream_stream(f"/{SERVICE}/{method}")(
            timeout=60, metadata=(("key", "right"),)
        )
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
