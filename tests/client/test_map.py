"""`map` of both clients: outcomes in order, failures told apart, nothing left when it is closed."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pixtral_client import (
    AnswerNotParsed,
    AsyncClient,
    BatchProgress,
    Client,
    InvalidRequest,
    Outcome,
)
from tests.support.fake_gateway import BAD_IMAGE, FakeGateway, refusal, serving
from tests.support.stack.new_picture import new_picture

Ask = Callable[..., "AsyncIterator[Outcome[Any]]"]
TEXT = "A cat on a mat."
PICTURES = 600


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()
    with serving(fake) as address:
        fake.address = address
        yield fake


@pytest.fixture(params=["sync", "asyncio"])
async def ask(request: pytest.FixtureRequest, gateway: FakeGateway) -> AsyncIterator[Ask]:
    """`map` of either client, as an asynchronous iterator."""
    if request.param == "asyncio":
        async with AsyncClient(gateway.address, timeout=120) as client:
            yield client.map
        return

    async def stepped(*given: Any, **more: Any) -> AsyncIterator[Outcome[Any]]:
        end: Any = object()
        with closing(other.map(*given, **more)) as outcomes:
            while (outcome := await asyncio.to_thread(next, outcomes, end)) is not end:
                yield outcome

    with Client(gateway.address, timeout=120) as other:
        yield stepped


def questions(count: int) -> list[Any]:
    return [[{"role": "user", "content": f"{i}"}] for i in range(count)]


def asked(gateway: FakeGateway) -> list[str]:
    return [request.chat.messages[0].content[0].text for request in gateway.requests]


async def test_outcomes_come_in_order_and_nothing_is_asked_twice(
    ask: Ask, gateway: FakeGateway
) -> None:
    outcomes = [outcome async for outcome in ask(questions(30), concurrency=4)]
    assert [outcome.index for outcome in outcomes] == list(range(30))
    assert {outcome.unwrap().text for outcome in outcomes} == {TEXT}
    assert sorted(asked(gateway), key=int) == [f"{i}" for i in range(30)]


async def test_no_conversations_have_no_outcomes(ask: Ask) -> None:
    assert [outcome async for outcome in ask([])] == []


async def test_refused_ones_are_sent_again(ask: Ask, gateway: FakeGateway) -> None:
    gateway.failures = [refusal(0.01)] * 10
    outcomes = [outcome async for outcome in ask(questions(12), concurrency=4)]
    assert [outcome.unwrap().text for outcome in outcomes] == [TEXT] * 12
    assert len(gateway.requests) == 22


async def test_a_gateway_that_refuses_a_third_answers_all_in_order(
    ask: Ask, gateway: FakeGateway
) -> None:
    gateway.refused_each = 3
    pictures = [[{"role": "user", "content": [new_picture(16, 16)]}] for _ in range(PICTURES)]
    seen: list[BatchProgress] = []
    outcomes = [outcome async for outcome in ask(pictures, concurrency=16, progress=seen.append)]
    assert [outcome.index for outcome in outcomes] == list(range(PICTURES))
    assert {outcome.unwrap().text for outcome in outcomes} == {TEXT}
    # No storm: every request that was answered, and half as many that were refused.
    assert seen[-1].sent == len(gateway.requests) <= 1.6 * PICTURES
    assert seen[-1].is_over


async def test_each_failure_is_its_own(ask: Ask, gateway: FakeGateway, tmp_path: Path) -> None:
    conversations = questions(4)
    conversations[1] = [{"role": "user", "content": [tmp_path / "none.png"]}]
    conversations[2] = "not a conversation"
    outcomes = [outcome async for outcome in ask(conversations)]
    assert [type(outcome.error) for outcome in outcomes] == [
        *(type(None), ValueError, TypeError, type(None)),
    ]
    assert "none.png" in str(outcomes[1].error)
    gateway.failure = BAD_IMAGE
    (outcome,) = [outcome async for outcome in ask(questions(1))]
    assert isinstance(outcome.error, InvalidRequest)


async def test_an_error_of_the_input_ends_it(ask: Ask) -> None:
    def broken() -> Iterator[Any]:
        yield from questions(2)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        async for _ in ask(broken(), concurrency=1):
            pass


async def test_progress_may_go_to_a_function(ask: Ask) -> None:
    seen: list[BatchProgress] = []
    async for _ in ask(questions(5), progress=seen.append):
        pass
    assert (seen[-1].answered, seen[-1].total, seen[-1].is_over) == (5, 5, True)


async def test_progress_is_a_line_on_standard_error(
    ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    async for _ in ask(questions(5), progress=True):
        pass
    assert "5/5" in capsys.readouterr().err.splitlines()[-1]


async def test_answers_are_values_of_a_model_or_say_why_not(ask: Ask, gateway: FakeGateway) -> None:
    class Animal(BaseModel):
        name: str

    (outcome,) = [outcome async for outcome in ask(questions(1), response_model=Animal)]
    assert isinstance(outcome.error, AnswerNotParsed)
    assert outcome.error.completion.text == TEXT
    assert "name" in gateway.requests[0].chat.sampling.structured_output.json_schema
    both: Any = {"response_model": Animal, "structured_output": {"regex": "a"}}
    with pytest.raises(TypeError, match="give one of them"):
        await anext(ask(questions(1), **both))


@pytest.mark.parametrize("concurrency", [0, -1])
async def test_at_least_one_must_run(ask: Ask, concurrency: int) -> None:
    with pytest.raises(ValueError, match="concurrency must be at least 1"):
        await anext(ask(questions(1), concurrency=concurrency))


def test_letting_go_of_it_cancels_what_runs(gateway: FakeGateway) -> None:
    with Client(gateway.address, timeout=120) as client:
        for _ in client.map(questions(100), concurrency=2):
            gateway.stuck = True
            gateway.cancelled.clear()
            break
        gc.collect()
        assert len(gateway.requests) < 20
        gateway.stuck = False
        assert client.chat(questions(1)[0]).text == TEXT


async def test_cancelling_the_task_leaves_no_task(gateway: FakeGateway) -> None:
    gateway.stuck = True
    async with AsyncClient(gateway.address, timeout=120) as client:
        before = asyncio.all_tasks()

        async def read() -> None:
            async for _ in client.map(questions(100), concurrency=4):
                pass

        task = asyncio.create_task(read())
        while not gateway.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(gateway.cancelled.wait, 60)
        assert asyncio.all_tasks() == before
