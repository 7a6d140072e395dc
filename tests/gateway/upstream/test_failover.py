"""Decoders that die, hang or fail in the middle of answers, and what the client sees of it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from types import SimpleNamespace

import grpc
import pytest
from prometheus_client import REGISTRY

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2
from pixtral_core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    Overloaded,
    ServingError,
    Unavailable,
)
from pixtral_core.generation.sampling import from_proto
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from pixtral_gateway.request import Delta, Event, Finished
from pixtral_gateway.upstream import replica as replica_module
from pixtral_gateway.upstream.ejection import CONSECUTIVE_FAILURES
from pixtral_gateway.upstream.placement import rendezvous
from pixtral_gateway.upstream.resume import can_be_continued
from tests.support.fake_tiers import Behaviour, FakeDecoder, FakeEncoder, Responses, delta
from tests.support.gateway_harness import Answer, Harness, ask, eventually
from tests.support.gateway_pictures import image, picture, text, user
from tests.support.redis_server import RedisServer

STORY = [("Once", 1001), (" upon", 1002), ("", 1003), (" a\N{COMBINING DIAERESIS}", 1004)] * 3
TEXT = "".join(word for word, _ in STORY)
TOKENS = [token for _, token in STORY]
GOING = Unavailable("going away")
STOP, GOES_ON = chat_pb2.FINISH_REASON_STOP, chat_pb2.FINISH_REASON_UNSPECIFIED
INTERNAL = grpc.StatusCode.INTERNAL
HELLO = user(text("Hello?"))
CAT = picture(40, 30, seed=1)


def tells(until: int | None = None, error: ServingError | None = GOING) -> Behaviour:
    """The story from where it stands on; up to `until`, where there is an error or a hang."""

    async def tell(request: decoder_pb2.GenerateRequest) -> Responses:
        begin = len(request.generated_token_ids)
        assert list(request.generated_token_ids) == TOKENS[:begin]
        for index in range(begin, len(STORY)):
            if index == until:
                if error is not None:
                    raise error
                await asyncio.Event().wait()
            word, token = STORY[index]
            is_last = index == len(STORY) - 1
            response = delta(word, token, finish=STOP if is_last else GOES_ON)
            if index == begin:
                response.cached_tokens = begin + 3
                response.queue.FromMilliseconds(250 + begin)
            yield response

    return tell


def each(decoders: Sequence[FakeDecoder], *behaviours: Behaviour) -> None:
    """One after the other, whichever decoder is asked."""
    remaining = iter(behaviours)

    async def next_one(request: decoder_pb2.GenerateRequest) -> Responses:
        async with aclosing(next(remaining)(request)) as responses:  # type: ignore[type-var]
            async for response in responses:
                yield response

    for decoder in decoders:
        decoder.behaviours = [next_one]


def calls(decoders: Sequence[FakeDecoder]) -> list[decoder_pb2.GenerateRequest]:
    return [call for decoder in decoders for call in decoder.calls]


def counted(result: str, tier: str = "decoder") -> float:
    labels = {"tier": tier, "result": result}
    return REGISTRY.get_sample_value("pixtral_gateway_retries_total", labels) or 0.0


async def told(gateway: Harness, sampling: chat_pb2.SamplingParams | None = None) -> Answer:
    async with aclosing(gateway.pipeline.stream(ask(HELLO, sampling=sampling))) as events:
        streamed = [event async for event in events]
    finished = streamed.pop()
    assert isinstance(finished, Finished)
    return Answer([event for event in streamed if isinstance(event, Delta)], finished)


async def refusal(
    gateway: Harness, sampling: chat_pb2.SamplingParams | None = None
) -> ServingError:
    with pytest.raises(ServingError) as refused:
        await told(gateway, sampling)
    await idle(gateway)
    return refused.value


async def _end(events: AsyncIterator[object]) -> None:
    async for _ in events:
        pass


async def idle(gateway: Harness) -> None:
    assert gateway.admission.in_use == 0
    assert not any(decoder.outstanding for decoder in gateway.tiers.decoders)
    assert not any(decoder.work.tokens for decoder in gateway.tiers.decoders)
    assert not any(decoder.work.answers for decoder in gateway.tiers.decoders)


@pytest.fixture
async def decoders() -> AsyncIterator[list[FakeDecoder]]:
    servers = [await FakeDecoder.started() for _ in range(4)]
    yield servers
    await asyncio.gather(*(server.stop() for server in servers))


class Looks:
    """In place of a clock: the gateway looks at who is silent when a test says so, and only then.

    Each look counts for `SECONDS_BETWEEN_LOOKS`, which is a second, however long it takes.
    """

    def __init__(self) -> None:
        self._due: list[asyncio.Future[None]] = []

    async def sleep(self, seconds: float) -> None:
        if seconds != replica_module.SECONDS_BETWEEN_LOOKS:
            await asyncio.sleep(seconds)
            return
        due = asyncio.get_running_loop().create_future()
        self._due.append(due)
        await due

    async def take(self, number: int) -> None:
        """Returns once every replica has been checked `number` times."""
        for _ in range(number):
            due, self._due = [each for each in self._due if not each.done()], []
            for each in due:
                each.set_result(None)
            await eventually(lambda: len(self._due) == len(due))  # noqa: B023

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await self.take(1)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    looks = Looks()
    monkeypatch.setattr(
        replica_module, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": looks.sleep})
    )
    return looks


@asynccontextmanager
async def gateway_of(
    spec: VisionSpec,
    prompts: PromptEncoder,
    redis: RedisServer,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
    *,
    stall_seconds: float = 30,
    most_retries: int = 100,
) -> AsyncIterator[Harness]:
    harness = await Harness.started(
        spec,
        prompts,
        redis.url,
        encoders,
        decoders,
        stall_seconds=stall_seconds,
        most_retries=most_retries,
    )
    try:
        yield harness
    finally:
        await harness.stop()


@pytest.mark.parametrize("at", range(1, len(STORY)))
async def test_answer_goes_on_where_it_broke_off(
    gateway: Harness, decoders: list[FakeDecoder], at: int
) -> None:
    before = counted("continued")
    each(decoders, tells(at), tells())

    answer = await told(gateway)

    assert answer.text == TEXT
    assert [token for d in answer.deltas for token in d.token_ids] == TOKENS
    assert [bool(d.finish_reason) for d in answer.deltas] == [False] * (len(STORY) - 1) + [True]
    usage = answer.finished.usage
    assert (usage.completion_tokens, usage.cached_tokens) == (len(STORY), 3)
    assert usage.prompt_tokens == len(calls(decoders)[0].prompt_token_ids)
    assert answer.finished.timings.queue == 0.25
    assert counted("continued") == before + 1
    await idle(gateway)


async def test_answer_survives_three_decoders(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    each(decoders, tells(2), tells(3), tells(7), tells())

    assert (await told(gateway)).text == TEXT

    assert len({call.request_id for call in calls(decoders)}) == 4
    assert [len(decoder.calls) for decoder in decoders] == [1, 1, 1, 1]


async def test_answer_does_not_take_down_every_decoder(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    each(decoders, *(tells(n) for n in range(1, 12)))

    refused = await refusal(gateway)

    assert isinstance(refused, Unavailable)
    assert refused.retry_after
    assert len(calls(decoders)) == 4


async def test_all_decoders_dead_midway_is_unavailable_at_once(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [tells(3, error=None)]
    async with aclosing(gateway.pipeline.stream(ask(HELLO))) as events:
        await anext(events)
        await asyncio.gather(*(decoder.stop() for decoder in decoders))
        with pytest.raises(Unavailable) as refused:
            await asyncio.wait_for(_end(events), 60)
    assert refused.value.retry_after
    await idle(gateway)


async def test_whole_answer_whose_status_is_lost_is_whole(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    async def tell(request: decoder_pb2.GenerateRequest) -> Responses:
        async for response in tells()(request):
            yield response
        raise GOING

    each(decoders, tell)

    assert (await told(gateway)).text == TEXT
    assert len(calls(decoders)) == 1


async def test_full_decoders_are_passed_over_midway_too(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    full = tells(2, Overloaded("the engine is full"))
    each(decoders, tells(2), full, full, tells())
    assert (await told(gateway)).text == TEXT

    await eventually(lambda: all(d.contract for d in gateway.tiers.decoders))
    each(decoders, tells(2), full, full, full)
    assert isinstance(await refusal(gateway), Unavailable)


async def test_continuation_that_a_decoder_refuses_is_unavailable(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    each(decoders, tells(2), tells(2, InvalidRequest("generated_token_ids", "is not taken")))
    assert isinstance(await refusal(gateway), Unavailable)


async def test_what_a_decoder_refuses_midway_is_the_clients_to_correct(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    path = "sampling.structured_output.grammar"
    each(decoders, tells(2, InvalidRequest(path, "takes too long", "STRUCTURE_TOO_SLOW")))
    refused = await refusal(gateway)
    assert isinstance(refused, InvalidRequest)
    assert (refused.reason, refused.violations) == (
        "STRUCTURE_TOO_SLOW",
        ((path, "takes too long"),),
    )
    assert len(calls(decoders)) == 1


async def test_embedding_that_the_next_decoder_misses_is_encoded_again(
    gateway: Harness, decoders: list[FakeDecoder], encoders: list[FakeEncoder]
) -> None:
    missing = FailedPrecondition("missing", "EMBEDDING_MISSING", {"images": "0"})
    each(decoders, tells(2), tells(2, missing), tells())

    answer = await gateway.answer(user(image(CAT), text("What is this?")))

    assert answer.text == TEXT
    assert answer.finished.usage.completion_tokens == len(STORY)
    assert sum(len(encoder.calls) for encoder in encoders) == 2


STATELESS = [
    {},
    {"temperature": 0.0, "seed": 7, "max_tokens": 5, "stop": ["x"], "stop_token_ids": [2]},
    {"temperature": 1.0, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1},
    {"n": 1, "seed": -1, "presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": True},
    {"logit_bias": {5: 1.0}, "allowed_token_ids": [5], "min_tokens": 3},
]
STATEFUL = [
    {"n": 2},
    {"seed": 7},
    {"seed": 7, "temperature": 0.5},
    {"logprobs": 0},
    {"presence_penalty": 0.1},
    {"frequency_penalty": -0.1},
    {"bad_words": ["two words"]},
    {"structured_output": chat_pb2.StructuredOutput(json_object=True)},
]


@pytest.mark.parametrize("fields", STATELESS, ids=str)
def test_what_the_tokens_alone_decide_is_continued(fields: dict[str, object]) -> None:
    assert can_be_continued(from_proto(chat_pb2.SamplingParams(**fields)))  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", STATEFUL, ids=str)
async def test_what_more_than_the_tokens_decides_is_unavailable_midway_and_retried_before(
    gateway: Harness, decoders: list[FakeDecoder], fields: dict[str, object]
) -> None:
    sampling = chat_pb2.SamplingParams(**fields)  # type: ignore[arg-type]
    each(decoders, tells(2), tells())
    refused = await refusal(gateway, sampling)
    assert isinstance(refused, Unavailable)
    assert refused.retry_after
    assert len(calls(decoders)) == 1

    each(decoders, tells(0), tells())
    assert (await told(gateway, sampling)).text == TEXT


async def test_decoder_that_fails_and_stays_is_not_asked_twice(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    broken = ServingError(INTERNAL, "INTERNAL", "internal error")
    each(decoders, tells(0, broken), tells(4, broken), tells())
    assert (await told(gateway)).text == TEXT
    assert all(decoder.contract for decoder in gateway.tiers.decoders)
    assert max(len(decoder.calls) for decoder in decoders) == 1


@pytest.mark.parametrize("code", [INTERNAL, grpc.StatusCode.UNAVAILABLE], ids=str)
async def test_decoder_that_fails_all_work_and_shakes_hands_is_left_out(
    gateway: Harness,
    decoders: list[FakeDecoder],
    monkeypatch: pytest.MonkeyPatch,
    code: grpc.StatusCode,
) -> None:
    monkeypatch.setattr(replica_module, "SECONDS_BETWEEN_ATTEMPTS", 0.01)
    for decoder in decoders:
        decoder.behaviours = [tells()]
    await told(gateway)
    (owner,) = [decoder for decoder in decoders if decoder.calls]
    owner.behaviours = [tells(0, ServingError(code, "BROKEN", "broken"))]
    replica = next(d for d in gateway.tiers.decoders if d.address == owner.address)
    for _ in range(CONSECUTIVE_FAILURES):
        assert (await told(gateway)).text == TEXT
        await eventually(lambda: replica.announced)

    assert replica.record.is_ejected
    assert (await told(gateway)).text == TEXT
    assert len(owner.calls) == 1 + CONSECUTIVE_FAILURES


@pytest.mark.parametrize("count", [2, 3])
async def test_decoder_that_comes_back_goes_on_only_where_no_other_can(
    count: int,
    spec: VisionSpec,
    prompts: PromptEncoder,
    redis: RedisServer,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
) -> None:
    some, is_back = decoders[:count], asyncio.Event()

    async def goes_when_the_other_is_back(request: decoder_pb2.GenerateRequest) -> Responses:
        try:
            async for response in tells(5)(request):
                yield response
        except ServingError:
            await is_back.wait()
            raise

    each(some, tells(2), goes_when_the_other_is_back, tells())
    async with gateway_of(spec, prompts, redis, encoders, some) as gateway:

        async def read() -> list[Event]:
            return [event async for event in gateway.pipeline.stream(ask(HELLO))]

        reading = asyncio.create_task(read())
        await eventually(lambda: len(calls(some)) == 2)
        (first,) = [d for d in some if d.calls and not d.calls[0].generated_token_ids]
        replica = next(d for d in gateway.tiers.decoders if d.address == first.address)
        await eventually(lambda: replica.contract)
        is_back.set()
        pieces = await reading
    assert "".join(p.text for p in pieces if isinstance(p, Delta)) == TEXT
    assert len(first.calls) == (2 if count == 2 else 1)
    assert len(calls(some)) == 3


async def test_outage_is_not_answered_with_more_calls_than_the_budget_has(
    spec: VisionSpec,
    prompts: PromptEncoder,
    redis: RedisServer,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pixtral_gateway.upstream.retry_budget.PER_SECOND", 0.0)
    for decoder in decoders:
        # They stay in use.
        decoder.behaviours = [tells(0, ServingError(INTERNAL, "INTERNAL", "internal error"))]
    async with gateway_of(spec, prompts, redis, encoders, decoders, most_retries=5) as gateway:
        refused = counted("refused")
        for _ in range(20):
            await refusal(gateway)
    # A fifth of a retry for each request, and what was saved before.
    assert 20 + 5 < len(calls(decoders)) <= 20 + 5 + 4
    assert counted("refused") > refused


async def test_answer_of_a_decoder_that_hangs_goes_on_at_another(
    spec: VisionSpec,
    prompts: PromptEncoder,
    redis: RedisServer,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
    looks: Looks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_module, "SECONDS_BETWEEN_HANDSHAKES", 0.05)
    monkeypatch.setattr(replica_module, "SECONDS_BETWEEN_ATTEMPTS", 0.05)
    each(decoders, tells(3, error=None), tells())
    async with gateway_of(spec, prompts, redis, encoders, decoders, stall_seconds=3) as gateway:
        telling = asyncio.create_task(told(gateway))
        await eventually(lambda: calls(decoders))
        (first,) = [decoder for decoder in decoders if decoder.calls]
        hung = next(d for d in gateway.tiers.decoders if d.address == first.address)
        await looks.until(lambda: hung.contract is None)
        assert (await telling).text == TEXT
        await idle(gateway)
        assert all(d.contract for d in gateway.tiers.decoders if d is not hung)
        assert hung.record.is_ejected
        await eventually(lambda: first.cancelled == 1)
        # Handshakes that it answers do not bring it back before its time.
        before = first.handshakes
        await eventually(lambda: first.handshakes > before + 2)
        assert hung.contract is None
        assert hung.announced is not None


async def test_decoder_that_hangs_is_found_by_clients_that_wait_less_than_that_takes(
    spec: VisionSpec,
    prompts: PromptEncoder,
    redis: RedisServer,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
    looks: Looks,
) -> None:
    for decoder in decoders:
        decoder.behaviours = [tells()]
    async with gateway_of(spec, prompts, redis, encoders, decoders, stall_seconds=5) as gateway:
        await told(gateway)
        (owner,) = [decoder for decoder in decoders if decoder.calls]
        owner.behaviours = [tells(0, error=None)]
        replica = next(d for d in gateway.tiers.decoders if d.address == owner.address)
        async with asyncio.timeout(60):
            while replica.contract is not None:
                asked = len(owner.calls)
                asking = asyncio.create_task(gateway.answer(HELLO, seconds=0.3))
                await eventually(lambda: len(owner.calls) > asked or asking.done())  # noqa: B023
                await looks.take(3)
                with suppress(DeadlineExceeded):
                    await asking
                # It owes nothing for a while.
                await looks.take(1)
        assert (await told(gateway)).text == TEXT


@pytest.mark.parametrize("speaks", [False, True])
async def test_process_that_shakes_no_hands_hangs_unless_it_goes_on_speaking(
    spec: VisionSpec,
    prompts: PromptEncoder,
    redis: RedisServer,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
    monkeypatch: pytest.MonkeyPatch,
    speaks: bool,
) -> None:
    monkeypatch.setattr(replica_module, "HANDSHAKE_SECONDS", 0.5)
    monkeypatch.setattr(replica_module, "SECONDS_BETWEEN_HANDSHAKES", 0.1)
    monkeypatch.setattr(replica_module, "SECONDS_BETWEEN_ATTEMPTS", 0.05)

    async def a_word_for_each_handshake(request: decoder_pb2.GenerateRequest) -> Responses:
        (busy,) = [decoder for decoder in decoders if decoder.calls]
        busy.shakes_hands.clear()
        # More than it takes until it is no longer used.
        many = busy.handshakes + 6
        async for response in tells()(request):
            yield response
            before = busy.handshakes
            await eventually(lambda: busy.handshakes > min(before, many))  # noqa: B023

    each(decoders, a_word_for_each_handshake if speaks else tells(3, error=None), tells())
    async with gateway_of(spec, prompts, redis, encoders, decoders) as gateway:
        telling = asyncio.create_task(told(gateway))
        await eventually(lambda: calls(decoders))
        (busy,) = [decoder for decoder in decoders if decoder.calls]
        busy.shakes_hands.clear()
        assert (await telling).text == TEXT
        assert len(calls(decoders)) == (1 if speaks else 2)
        replica = next(d for d in gateway.tiers.decoders if d.address == busy.address)
        await eventually(lambda: replica.contract is None)
        assert not replica.record.is_ejected
        busy.shakes_hands.set()
        await eventually(lambda: replica.contract)


async def test_decoder_that_answers_others_does_not_hang(
    spec: VisionSpec,
    prompts: PromptEncoder,
    redis: RedisServer,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
    looks: Looks,
) -> None:
    each(decoders, tells(3, error=None), *[tells()] * 6)
    # Long enough that it goes where the first of them is, although that runs already.
    long = user(text("Hello? " * 100))
    async with gateway_of(spec, prompts, redis, encoders, decoders[:2], stall_seconds=3) as gateway:
        waiting = asyncio.create_task(gateway.answer(long, seconds=600))
        await eventually(lambda: calls(decoders))
        for _ in range(6):
            await gateway.answer(long)
            await looks.take(2)
        assert sorted(len(decoder.calls) for decoder in decoders[:2]) == [0, 7]
        assert all(decoder.contract for decoder in gateway.tiers.decoders)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait((waiting,))


async def test_decoder_whose_client_reads_nothing_does_not_hang(
    spec: VisionSpec,
    prompts: PromptEncoder,
    redis: RedisServer,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
    looks: Looks,
) -> None:
    each(decoders, tells())
    async with (
        gateway_of(spec, prompts, redis, encoders, decoders, stall_seconds=3) as gateway,
        aclosing(gateway.pipeline.stream(ask(HELLO))) as events,
    ):
        await anext(events)
        await looks.take(8)
        assert all(decoder.contract for decoder in gateway.tiers.decoders)
        await _end(events)


async def test_decoder_that_answers_another_gateway_does_not_hang(
    spec: VisionSpec,
    prompts: PromptEncoder,
    redis: RedisServer,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
    looks: Looks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_module, "SECONDS_BETWEEN_HANDSHAKES", 0.05)
    begin = asyncio.Event()

    async def waits_its_turn(request: decoder_pb2.GenerateRequest) -> Responses:
        await begin.wait()
        async for response in tells()(request):
            yield response

    each(decoders, waits_its_turn)
    async with gateway_of(spec, prompts, redis, encoders, decoders, stall_seconds=3) as gateway:
        telling = asyncio.create_task(told(gateway))
        await eventually(lambda: calls(decoders))
        (busy,) = [decoder for decoder in decoders if decoder.calls]
        replica = next(d for d in gateway.tiers.decoders if d.address == busy.address)
        for heard in range(replica.responses + 1, replica.responses + 6):
            busy.responses += 1
            await eventually(lambda: replica.responses == heard)  # noqa: B023
            await looks.take(2)
        assert all(decoder.contract for decoder in gateway.tiers.decoders)
        begin.set()
        assert (await telling).text == TEXT


async def test_lone_decoder_that_says_nothing_is_waited_for(
    spec: VisionSpec,
    prompts: PromptEncoder,
    redis: RedisServer,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
    looks: Looks,
) -> None:
    go_on = asyncio.Event()

    async def slow(request: decoder_pb2.GenerateRequest) -> Responses:
        await go_on.wait()
        async for response in tells()(request):
            yield response

    each(decoders, slow)
    async with gateway_of(spec, prompts, redis, encoders, decoders[:1], stall_seconds=3) as gateway:
        telling = asyncio.create_task(told(gateway))
        await eventually(lambda: calls(decoders))
        await looks.take(8)
        assert not telling.done()
        go_on.set()
        assert (await telling).text == TEXT


async def test_hung_encoder_is_left_for_another(
    spec: VisionSpec,
    prompts: PromptEncoder,
    redis: RedisServer,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
    looks: Looks,
) -> None:
    sha256 = hashlib.sha256(CAT).digest()
    address = rendezvous(sha256, [encoder.address for encoder in encoders])[0]
    owner = next(encoder for encoder in encoders if encoder.address == address)
    owner.hold.clear()
    each(decoders, tells())
    async with gateway_of(spec, prompts, redis, encoders, decoders, stall_seconds=3) as gateway:
        asking = asyncio.create_task(gateway.answer(user(image(CAT), text("What is this?"))))
        await eventually(lambda: owner.calls)
        hung = next(e for e in gateway.tiers.encoders if e.address == owner.address)
        await looks.until(lambda: hung.contract is None)
        assert (await asking).text == TEXT
        await eventually(lambda: owner.cancelled)
