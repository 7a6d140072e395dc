import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from pixtral_core.generation.logprobs import Logprob, TokenLogprobs
from pixtral_gateway import stream_buffer
from pixtral_gateway.request import Delta, FinishReason
from pixtral_gateway.stream_buffer import MAX_WAITING_BYTES, StreamBuffer
from tests.support.gateway_harness import eventually


def delta(text: str, *token_ids: int, index: int = 0, last: bool = False) -> Delta:
    return Delta(
        index,
        text,
        token_ids,
        FinishReason.STOP if last else None,
        tuple(TokenLogprobs(Logprob(each, text, -1.0, 1), ()) for each in token_ids),
    )


class Source:
    """Yields `events` one after the other without waiting, and then does as `ending` does."""

    def __init__(self, *events: Delta, error: Exception | None = None) -> None:
        self._events = events
        self._error = error
        self.taken = 0
        self.closed = False

    async def events(self, *, ends: bool = True) -> AsyncGenerator[Delta]:
        try:
            for event in self._events:
                self.taken += 1
                yield event
            if self._error is not None:
                raise self._error
            if not ends:
                await asyncio.Event().wait()
        finally:
            self.closed = True


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that has read one event was slow over it."""
    monkeypatch.setattr(stream_buffer, "SLOW_SECONDS", -1.0)


async def test_a_reader_that_keeps_up_gets_each_delta_as_it_came() -> None:
    ask = asyncio.Queue[Delta]()

    async def source() -> AsyncGenerator[Delta]:
        for _ in range(3):
            yield await ask.get()

    events = StreamBuffer(source())
    for sent in (delta("a", 1), delta("b", 2), delta("c", 3)):
        ask.put_nowait(sent)
        assert await anext(events) == sent
    assert [each async for each in events] == []


async def test_nothing_is_taken_ahead_of_a_reader_that_keeps_up() -> None:
    source = Source(delta("a", 1), delta("b", 2), delta("c", 3))
    async with aclosing(StreamBuffer(source.events())) as events:
        for taken in (1, 2, 3):
            await anext(events)
            assert source.taken == taken


@pytest.mark.usefixtures("slow")
async def test_what_waits_is_one_delta_for_each_answer() -> None:
    source = Source(
        delta("he", 1),
        delta("x", 7, index=1),
        delta("", 2),
        delta("llo", 3, 4, last=True),
        delta("y", 8, index=1, last=True),
    )
    events = StreamBuffer(source.events())
    first = await anext(events)
    rest = [await anext(events)]
    await eventually(lambda: source.closed)
    rest += [each async for each in events]
    of_first = [e for e in (first, *rest) if e.index == 0]
    assert len(of_first) <= 2
    assert "".join(e.text for e in of_first) == "hello"
    assert [t for e in of_first for t in e.token_ids] == [1, 2, 3, 4]
    assert [p.chosen.token_id for e in of_first for p in e.logprobs if p.chosen] == [1, 2, 3, 4]
    assert of_first[-1].finish_reason == FinishReason.STOP
    (of_second,) = [e for e in rest if e.index == 1]
    assert (of_second.text, list(of_second.token_ids)) == ("xy", [7, 8])
    assert of_second.finish_reason == FinishReason.STOP


@pytest.mark.usefixtures("slow")
async def test_a_reader_that_stops_holds_back_the_source_in_the_end() -> None:
    many = 3 * MAX_WAITING_BYTES // 1000
    source = Source(*(delta("a" * 1000) for n in range(many)))
    events = StreamBuffer(source.events())
    first = [await anext(events), await anext(events)]
    await eventually(lambda: source.taken > many // 4)
    for _ in range(100):
        await asyncio.sleep(0)
    assert source.taken < many
    read = [*first, *[each async for each in events]]
    assert sum(len(e.text) for e in read) == 1000 * many
    assert len(read) < 10


@pytest.mark.parametrize("slow_seconds", [60.0, -1.0])
async def test_an_error_comes_behind_what_was_before_it(
    slow_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_buffer, "SLOW_SECONDS", slow_seconds)
    source = Source(delta("a", 1), delta("b", 2), error=KeyError("lost"))
    events = StreamBuffer(source.events())
    seen: list[Delta] = []

    async def read() -> None:
        async for event in events:
            seen.append(event)  # noqa: PERF401 - what came before the error is looked at

    with pytest.raises(KeyError):
        await read()
    assert "".join(e.text for e in seen) == "ab"


@pytest.mark.parametrize("slow_seconds", [60.0, -1.0])
async def test_closing_it_closes_what_it_reads(
    slow_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_buffer, "SLOW_SECONDS", slow_seconds)
    source = Source(delta("a", 1), delta("b", 2))
    async with aclosing(StreamBuffer(source.events(ends=False))) as events:
        await anext(events)
        await anext(events)
    assert source.closed


@pytest.mark.parametrize("slow_seconds", [60.0, -1.0])
async def test_cancelling_its_reader_closes_what_it_reads(
    slow_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_buffer, "SLOW_SECONDS", slow_seconds)
    source = Source(delta("a", 1))

    async def read() -> None:
        async with aclosing(StreamBuffer(source.events(ends=False))) as events:
            async for _ in events:
                pass

    reading = asyncio.create_task(read())
    await eventually(lambda: source.taken)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert source.closed


@pytest.mark.usefixtures("slow")
async def test_an_error_that_nobody_waits_for_is_not_lost_noisily() -> None:
    source = Source(delta("a", 1), delta("b", 2), error=KeyError("lost"))
    async with aclosing(StreamBuffer(source.events())) as events:
        await anext(events)
        await anext(events)
        await eventually(lambda: source.closed)
