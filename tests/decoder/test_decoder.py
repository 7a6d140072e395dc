"""Admission, embeddings and retries around an engine that the tests steer."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from pixtral.internal.v1 import decoder_pb2
from pixtral_core.errors import FailedPrecondition, InvalidRequest, Overloaded, Unavailable
from pixtral_core.model.vision_spec import Grid
from pixtral_core.telemetry.request_log import Call
from pixtral_core.telemetry.tracing import Tracer
from pixtral_decoder.checks import Limits
from pixtral_decoder.decoder import Decoder
from pixtral_decoder.embeddings.image_embedding import ImageEmbedding
from pixtral_decoder.embeddings.source import EmbeddingMissing
from pixtral_decoder.embeddings.waiting_bytes import WaitingBytes
from pixtral_decoder.engine.engine import Delta, EngineDead, FinishReason, ImagesNotHeld
from pixtral_decoder.grpc_service import DecoderService
from pixtral_decoder.request import ImagePlace, Prompt
from pixtral_decoder.waiting_queue import WaitingQueue
from tests.decoder.prompts import FINGERPRINT, GREEDY, SPEC, eventually, key_of, prompt_of, values
from tests.support.generators import generators_of

GRID = Grid(2, 3)
LAST = Delta("b", (2,), FinishReason.LENGTH, 0, 0.0)


class Engine:
    """Answers with two deltas, the second once `gate` is open."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.error: Exception | None = None
        self.calls: list[tuple[list[bool], bool]] = []
        self.closed = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def holds(self, image: ImagePlace) -> bool:
        return image.identity in self.held

    async def generate(
        self,
        prompt: Prompt,
        embeddings: Sequence[ImageEmbedding | None],
        *,
        resend: bool = False,
    ) -> AsyncGenerator[Delta]:
        self.calls.append(([each is not None for each in embeddings], resend))
        try:
            if self.error is not None:
                error, self.error = self.error, None
                raise error
            yield Delta("a", (1,), None, 0, 0.0)
            await self.gate.wait()
            yield LAST
        finally:
            self.closed += 1


class Source:
    def __init__(self) -> None:
        self.embeddings: dict[bytes, ImageEmbedding] = {}
        self.asked = 0

    async def get(self, image: ImagePlace) -> ImageEmbedding:
        self.asked += 1
        try:
            return self.embeddings[image.key.digest]
        except KeyError:
            raise EmbeddingMissing from None


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def source() -> Source:
    source = Source()
    for name in ("a", "b"):
        source.embeddings[key_of(name).digest] = ImageEmbedding(GRID, values(GRID))
    return source


@pytest.fixture
def waiting() -> WaitingBytes:
    return WaitingBytes(2 * GRID.tokens, 1)


@pytest.fixture
def decoder(engine: Any, source: Any, waiting: WaitingBytes) -> Decoder:
    return Decoder(
        engine=engine,
        source=source,
        limits=Limits(SPEC, 131072, 4096, 4),
        fingerprint=FINGERPRINT,
        queue=WaitingQueue(2, max_wait_seconds=0),
        waiting_bytes=waiting,
    )


async def drain(decoder: Decoder, prompt: Prompt) -> list[Delta]:
    return [delta async for delta in decoder.generate(prompt)]


async def test_embeddings_are_given_in_the_images_order(
    decoder: Decoder, engine: Engine, source: Source
) -> None:
    prompt = prompt_of(1, (key_of("a"), GRID), 2, (key_of("b"), GRID))
    assert (await drain(decoder, prompt))[-1] == LAST
    assert engine.calls == [([True, True], False)]


async def test_what_the_engine_holds_is_not_looked_for(
    decoder: Decoder, engine: Engine, source: Source
) -> None:
    prompt = prompt_of(1, (key_of("a"), GRID), 2, (key_of("b"), GRID))
    engine.held = {prompt.images[0].identity}
    await drain(decoder, prompt)
    assert engine.calls == [([False, True], False)]
    assert source.asked == 1


async def test_what_the_engine_turns_out_not_to_hold_is_sent_again(
    decoder: Decoder, engine: Engine, source: Source
) -> None:
    prompt = prompt_of(1, (key_of("a"), GRID))
    engine.held, engine.error = {prompt.images[0].identity}, ImagesNotHeld()
    assert len(await drain(decoder, prompt)) == 2
    assert engine.calls == [([False], False), ([True], True)]


async def test_every_missing_image_is_named(decoder: Decoder, engine: Engine) -> None:
    names = ["x", "a", "y"]
    with pytest.raises(FailedPrecondition) as refusal:
        await drain(decoder, prompt_of(1, *((key_of(name), GRID) for name in names)))
    assert refusal.value.reason == "EMBEDDING_MISSING"
    assert refusal.value.metadata == {"images": "0,2"}
    assert engine.calls == []
    assert decoder.queue.admitted == 0


async def test_an_embedding_of_another_size_does_not_reach_the_engine(
    decoder: Decoder, engine: Engine
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await drain(decoder, prompt_of(1, (key_of("a"), Grid(3, 3))))
    assert refusal.value.violations[0][0] == "images[0].rows"
    assert engine.calls == []


async def test_another_models_embeddings_are_refused(decoder: Decoder, engine: Engine) -> None:
    with pytest.raises(FailedPrecondition) as refusal:
        await drain(decoder, prompt_of(1, (key_of("a", "e" * 32), GRID)))
    assert refusal.value.reason == "FINGERPRINT_MISMATCH"
    assert engine.calls == []


def shown(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"pixtral_decoder_{name}")


async def test_beyond_its_room_the_decoder_refuses_at_once(
    decoder: Decoder, engine: Engine
) -> None:
    engine.gate.clear()
    running = [asyncio.create_task(drain(decoder, prompt_of(1))) for _ in range(2)]
    await eventually(lambda: len(engine.calls) == 2)
    assert (shown("requests_admitted"), shown("requests_limit")) == (2, 2)
    with pytest.raises(Overloaded) as refusal:
        await drain(decoder, prompt_of(1))
    assert refusal.value.retry_after
    engine.gate.set()
    await asyncio.gather(*running)
    assert len(await drain(decoder, prompt_of(1))) == 2
    assert shown("requests_admitted") == 0


async def test_a_request_takes_room_for_each_of_its_answers(
    decoder: Decoder, engine: Engine
) -> None:
    two, three = (prompt_of(1, sampling=replace(GREEDY, n=n)) for n in (2, 3))
    engine.gate.clear()
    running = asyncio.create_task(drain(decoder, two))
    await eventually(lambda: engine.calls)
    assert shown("requests_admitted") == 2
    with pytest.raises(Overloaded):
        await drain(decoder, prompt_of(1))
    engine.gate.set()
    await running
    # Alone, it gets in and waits for itself.
    assert len(await drain(decoder, three)) == 2
    assert decoder.queue.admitted == 0


async def test_a_cancelled_request_leaves_nothing(decoder: Decoder, engine: Engine) -> None:
    engine.gate.clear()
    task = asyncio.create_task(drain(decoder, prompt_of(1)))
    await eventually(lambda: engine.calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (engine.closed, decoder.queue.admitted) == (1, 0)


async def test_images_that_wait_have_so_much_memory_and_those_that_run_have_none_of_it(
    decoder: Decoder, engine: Engine, waiting: WaitingBytes
) -> None:
    prompt = prompt_of(1, (key_of("a"), GRID), 2, (key_of("b"), GRID))
    leave = waiting.take(prompt_of(1, (key_of("c"), GRID)).images)
    with pytest.raises(Overloaded):
        await drain(decoder, prompt)
    assert (engine.calls, decoder.queue.admitted) == ([], 0)
    # An image that the engine holds is in none of this process's memory.
    engine.held = {prompt.images[0].identity}
    engine.gate.clear()
    stream = decoder.generate(prompt)
    await anext(stream)
    assert waiting.bytes == GRID.tokens
    leave()
    engine.gate.set()
    await stream.aclose()
    engine.error = EngineDead()
    with pytest.raises(Unavailable):
        await drain(decoder, prompt)
    assert waiting.bytes == 0


async def test_a_dead_engine_is_unavailable(decoder: Decoder, engine: Engine) -> None:
    engine.error = EngineDead()
    with pytest.raises(Unavailable):
        await drain(decoder, prompt_of(1))
    assert decoder.queue.admitted == 0


async def test_a_call_is_told_how_its_request_went(decoder: Decoder, engine: Engine) -> None:
    call = Call.begin("a.B/C", (), Tracer())
    prompt = prompt_of(1, (key_of("a"), GRID), 2, (key_of("b"), GRID))
    engine.held = {prompt.images[0].identity}
    await drain(decoder, prompt)
    seconds = call.facts.pop("ttft_seconds")
    assert isinstance(seconds, float)
    assert 0 < seconds < call.seconds
    assert call.facts == {
        "prompt_tokens": len(prompt.token_ids),
        "images": 2,
        "embeddings_local": 1,
        "cached_tokens": 0,
        "queue_seconds": 0.0,
        "completion_tokens": 2,
    }


async def test_a_token_passes_three_generators(decoder: Decoder, engine: Engine) -> None:
    service = DecoderService()
    service.decoder = decoder
    engine.gate.clear()
    request = decoder_pb2.GenerateRequest(request_id="a", prompt_token_ids=[1])
    stream = service.Generate(request, cast("Any", None))
    assert (await anext(stream)).delta.text == "a"

    waiting = asyncio.create_task(anext(stream))
    await eventually(lambda: "decoder.generate" in generators_of(waiting))
    # The third is the engine's, whose part a test has here.
    assert generators_of(waiting) == ["grpc_service.Generate", "decoder.generate"]
    engine.gate.set()
    assert (await waiting).delta.text == "b"
    await stream.aclose()
