"""One real vLLM engine in float32, as the decoder runs it, held against the plain model."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2
from pixtral_core.cache.wire_format import DType
from pixtral_core.generation.sampling import Sampling
from pixtral_decoder.engine.engine import ImagesNotHeld
from pixtral_decoder.request import Prompt
from pixtral_decoder.vllm_hooks.tensor_handover import encoder_of
from tests.decoder.engine.served import (
    BOS,
    CONTEXT_LENGTH,
    END_INST,
    GREEDY,
    INST,
    MAX_RUNNING,
    Answer,
    Image,
    Served,
    request_of,
    serving,
    sockets_of,
)
from tests.decoder.fuzz import fuzz, fuzzer_of
from tests.support.redis_server import RedisServer

# One engine for the module, and none left beside those of the tests that follow.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(checkpoint: Path, redis_server: RedisServer) -> AsyncIterator[Served]:
    async with serving(checkpoint, redis_server, max_running=MAX_RUNNING) as served:
        yield served


async def test_vllms_sockets_are_where_they_are_removed(served: Served) -> None:
    # By `serving`, which sees to it that they are.
    assert any(each.is_socket() for each in sockets_of(served.engine).iterdir())


@pytest.mark.parametrize("images", range(5))
async def test_greedy_tokens_are_the_plain_models(served: Served, images: int) -> None:
    rng = random.Random(images)
    parts: list[int | Image] = [BOS, INST]
    for number in range(images):
        parts += [rng.randrange(1000, 131072) for _ in range(rng.randrange(4))]
        parts.append(
            served.image(rng.randint(1, 24), rng.randint(1, 24), seed=10 * images + number)
        )
    parts += [rng.randrange(1000, 131072) for _ in range(5)] + [END_INST]
    prompt = served.prompt(*parts)
    pixels = [part.pixels for part in parts if isinstance(part, Image)]
    expected = await asyncio.to_thread(served.reference.generate, prompt.token_ids, pixels, 24)

    answer = await served.answer(prompt)

    assert answer.token_ids == expected
    assert answer.responses[-1].delta.finish_reason == chat_pb2.FINISH_REASON_LENGTH


async def test_the_same_at_once_and_from_every_cache(served: Served) -> None:
    first, second = served.image(8, 9, seed=100), served.image(12, 5, seed=101)
    prompts = [
        served.prompt(BOS, INST, image, 1000 + n, END_INST)
        for n in range(4)
        for image in (first, second)
    ]
    pixels = [first.pixels, second.pixels] * 4
    expected = [
        await asyncio.to_thread(served.reference.generate, prompt.token_ids, [image], 24)
        for prompt, image in zip(prompts, pixels, strict=True)
    ]

    cold = await asyncio.gather(*(served.answer(prompt) for prompt in prompts))
    warm = [await served.answer(replace(prompt, request_id="w")) for prompt in prompts]

    assert [answer.token_ids for answer in cold] == expected
    assert [answer.token_ids for answer in warm] == expected


async def test_a_question_on_the_same_image_reuses_its_keys_and_values(served: Served) -> None:
    image = served.image(20, 20, seed=200)
    await served.answer(served.prompt(BOS, INST, image, 1001, END_INST))
    again = served.prompt(BOS, INST, image, 2002, END_INST)
    assert (await served.answer(again)).cached_tokens >= 400
    of_another_tenant = served.prompt(BOS, INST, image, 2002, END_INST, salt="other")
    assert (await served.answer(of_another_tenant)).cached_tokens == 0


async def test_the_wait_for_a_place_in_the_engine_is_told(served: Served) -> None:
    long = replace(GREEDY, max_tokens=400)
    running = [
        served.call(served.prompt(BOS, INST, n, END_INST, sampling=long))
        for n in range(1000, 1000 + MAX_RUNNING)
    ]
    first = [await call.read() for call in running]
    waited = await served.answer(served.prompt(BOS, INST, 1004, END_INST))
    for call in running:
        call.cancel()
    queues = [response.queue.ToNanoseconds() for response in first]
    assert waited.responses[0].queue.ToNanoseconds() > max(queues)


async def test_two_images_of_one_size_are_told_apart(served: Served) -> None:
    answers = [
        await served.answer(served.prompt(BOS, INST, served.image(6, 6, seed), 1003, END_INST))
        for seed in (300, 301)
    ]
    assert answers[0].token_ids != answers[1].token_ids


async def test_deltas_come_as_they_are_made(served: Served) -> None:
    long = replace(GREEDY, max_tokens=2000)
    call = served.call(served.prompt(BOS, INST, 1004, END_INST, sampling=long))
    first = await call.read()
    assert 0 < len(first.delta.token_ids) < 2000
    assert first.delta.finish_reason == chat_pb2.FINISH_REASON_UNSPECIFIED
    call.cancel()


async def test_a_stop_string_ends_the_answer_and_is_not_in_it(served: Served) -> None:
    parts = (BOS, INST, 1005, END_INST)
    whole = (await served.answer(served.prompt(*parts))).text
    stop = whole[len(whole) // 2 :][:3]
    cut = await served.answer(served.prompt(*parts, sampling=replace(GREEDY, stop=(stop,))))
    assert cut.text == whole[: whole.index(stop)]
    assert cut.responses[-1].delta.finish_reason == chat_pb2.FINISH_REASON_STOP


async def continued(served: Served, prompt: Prompt, whole: Answer, at: int) -> Answer:
    """The answer again, where its first `at` responses came from elsewhere."""
    sent = [response.delta for response in whole.responses[:at]]
    generated = [token for delta in sent for token in delta.token_ids]
    name = f"{prompt.request_id}-{at}"
    rest = await served.answer(replace(prompt, request_id=name, generated=generated))
    text = "".join(delta.text for delta in sent) + rest.text
    return replace(rest, token_ids=generated + rest.token_ids, text=text)


async def test_the_whole_characters_of_the_last_token_are_sent(served: Served) -> None:
    """A token of a space and a part of a character: vLLM by itself sends nothing of it."""
    tokenizer: Any = served.engine._llm.tokenizer
    spelled = tokenizer.tokenizer.id_to_byte_piece
    token = next(token for token in range(1000, 131072) if spelled(token) == b" \xe2\x80")
    for n in (1, 2):
        sampling = replace(GREEDY, max_tokens=1, n=n, temperature=1.0, allowed_token_ids=(token,))
        prompt = served.prompt(BOS, INST, 1005, END_INST, sampling=sampling)
        assert await served.several(prompt) == [" "] * n


async def test_an_answer_goes_on_from_wherever_it_was_cut(served: Served) -> None:
    image = served.image(7, 9, seed=700)
    prompt = served.prompt(BOS, INST, image, 1030, END_INST)
    whole = await served.answer(prompt)
    for at in range(1, len(whole.responses), 3):
        answer = await continued(served, prompt, whole, at)
        assert (answer.token_ids, answer.text) == (whole.token_ids, whole.text)
        assert answer.responses[-1].delta.finish_reason == chat_pb2.FINISH_REASON_LENGTH


async def test_a_stop_string_across_the_cut_ends_the_answer_and_the_engines_work(
    served: Served,
) -> None:
    parts = (BOS, INST, 1031, END_INST)
    text = (await served.answer(served.prompt(*parts))).text
    stop = text[len(text) // 2 :][:8]
    endless = replace(GREEDY, max_tokens=4000, stop=(stop,))
    prompt = served.prompt(*parts, sampling=endless)
    whole = await served.answer(prompt)
    assert whole.text == text[: text.index(stop)]
    before = await served.generated()
    for at in range(1, len(whole.responses)):
        answer = await continued(served, prompt, whole, at)
        assert (answer.token_ids, answer.text) == (whole.token_ids, whole.text)
        assert answer.responses[-1].delta.finish_reason == chat_pb2.FINISH_REASON_STOP
    async with asyncio.timeout(30):
        while await served.admitted():
            await asyncio.sleep(0.01)
    assert await served.generated() - before < 4000


async def test_a_seed_repeats_an_answer(served: Served) -> None:
    sampling = Sampling(max_tokens=8, temperature=1.0, seed=7)
    prompt = served.prompt(BOS, INST, 1006, END_INST, sampling=sampling)
    first, second = [await served.answer(replace(prompt, request_id=name)) for name in "ab"]
    assert first.token_ids == second.token_ids


async def test_a_cancelled_call_stops_the_engine(served: Served) -> None:
    endless = replace(GREEDY, max_tokens=8000)
    before = await served.generated()
    calls = [
        served.call(served.prompt(BOS, INST, 1007 + n, END_INST, sampling=endless))
        for n in range(3)
    ]
    for call in calls:
        await call.read()
    assert await served.admitted() == 3
    for call in calls:
        call.cancel()

    async with asyncio.timeout(30):
        while await served.admitted():
            await asyncio.sleep(0.01)
    # The engine answers the next one, and has made nothing like what it was asked for.
    await served.answer(served.prompt(BOS, INST, 1020, END_INST))
    assert await served.generated() - before < 8000
    assert "vllm:num_requests_running{" in await served.metrics()


async def test_a_deadline_stops_the_engine(served: Served) -> None:
    endless = replace(GREEDY, max_tokens=8000)
    request = request_of(served.prompt(BOS, INST, 1021, END_INST, sampling=endless))
    with pytest.raises(grpc.aio.AioRpcError) as late:
        async for _ in served.stub.Generate(request, timeout=0.5):
            pass
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(30):
        while await served.admitted():
            await asyncio.sleep(0.01)


async def test_what_could_end_the_engine_is_refused_and_the_engine_lives(served: Served) -> None:
    image = served.image(4, 4, seed=400)
    good = request_of(served.prompt(BOS, INST, image, 1008, END_INST))

    def changed(**fields: Any) -> decoder_pb2.GenerateRequest:
        request = decoder_pb2.GenerateRequest.FromString(good.SerializeToString())
        for name, value in fields.items():
            setattr(request.images[0], name, value)
        return request

    ids = list(good.prompt_token_ids)
    another_size = decoder_pb2.GenerateRequest.FromString(good.SerializeToString())
    del another_size.prompt_token_ids[:]
    another_size.prompt_token_ids.extend([BOS, INST, *([10] * 3 + [12]), *([10] * 3 + [13]), 4])
    another_size.images[0].rows, another_size.images[0].cols = 2, 3
    no_image = decoder_pb2.GenerateRequest(request_id="r", prompt_token_ids=ids)
    outside = decoder_pb2.GenerateRequest(request_id="r", prompt_token_ids=[131072])
    long = decoder_pb2.GenerateRequest(request_id="r", prompt_token_ids=[7] * 8192)
    no_key = decoder_pb2.GenerateRequest.FromString(good.SerializeToString())
    no_key.images[0].ClearField("key")
    cases = [
        (changed(rows=3), "images[0].offset"),
        (changed(offset=0), "images[0].offset"),
        (changed(cols=2**32 - 1), "images[0].cols"),
        (another_size, "images[0].rows"),
        (no_image, "prompt_token_ids"),
        (outside, "prompt_token_ids"),
        (long, "prompt_token_ids"),
        (no_key, "images[0].key"),
    ]
    for request, path in cases:
        refusal = await served.refusal(request)
        assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
        assert [field for field, _ in refusal.violations] == [path]

    # The same key in another grid again, now that the engine holds it under its own.
    await served.answer(served.prompt(BOS, INST, image, 1008, END_INST))
    assert [path for path, _ in (await served.refusal(another_size)).violations] == [
        "images[0].rows"
    ]
    assert not served.engine.dead
    assert (await served.answer(served.prompt(BOS, INST, 1009, END_INST))).token_ids


async def test_an_embedding_that_is_nowhere_is_named(served: Served) -> None:
    here = served.image(3, 3, seed=500)
    nowhere = replace(here, key=replace(here.key, image_sha256=bytes(32)))
    refusal = await served.refusal(
        request_of(served.prompt(BOS, INST, here, nowhere, 1010, END_INST))
    )
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "EMBEDDING_MISSING",
    )
    assert refusal.metadata == {"images": "1"}


async def test_the_engine_tells_when_it_has_dropped_an_image(served: Served) -> None:
    """What this side's record says is held, and the engine's process does not hold."""
    from pixtral_decoder.engine.inputs import embedding_item

    images = served.engine._parts.images
    image = served.image(5, 5, seed=600)
    prompt = served.prompt(BOS, INST, image, 1011, END_INST)
    expected = served.reference.generate(prompt.token_ids, [image.pixels], 24)
    name = prompt.images[0].identity
    images.sent([name], [embedding_item(image.embedding)])
    assert served.engine.holds(prompt.images[0])
    with pytest.raises(ImagesNotHeld):
        await anext(served.engine.generate(prompt, [None]))

    images.sent([name], [embedding_item(image.embedding)])
    answer = await served.answer(replace(prompt, request_id="again"))

    assert answer.token_ids == expected


async def test_an_image_crosses_to_the_engine_once(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many answers, questions and tenants there are to it."""
    sizes = weighed(served, monkeypatch)
    image = served.image(24, 24, seed=700)
    sampling = Sampling(max_tokens=4, temperature=1.0, seed=3, n=4)
    several = await served.several(
        served.prompt(BOS, INST, image, 1012, END_INST, sampling=sampling)
    )
    assert len(set(several)) > 1
    await served.answer(served.prompt(BOS, INST, image, 1013, END_INST))
    await served.answer(served.prompt(BOS, INST, image, 1013, END_INST, salt="other"))

    large = [size for size in sizes if size > image.embedding.nbytes // 2]
    assert len(sizes) >= 6
    assert len(large) == 1


async def test_a_large_image_crosses_to_the_engine_in_shared_memory(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = served.image(24, 24, seed=701)
    prompt = served.prompt(BOS, INST, image, 1012, END_INST)
    expected = await asyncio.to_thread(
        served.reference.generate, prompt.token_ids, [image.pixels], 24
    )
    sizes = weighed(served, monkeypatch)
    monkeypatch.setattr(
        "pixtral_decoder.embeddings.memory_files.LEAST_BYTES", image.embedding.nbytes
    )
    answer = await served.answer(prompt)
    assert answer.token_ids == expected
    assert max(sizes) < image.embedding.nbytes // 4


def weighed(served: Served, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the messages to the engine from now on, in bytes."""
    encoder: Any = encoder_of(served.engine._llm)
    encode, sizes = encoder.encode, list[int]()

    def weigh(message: object) -> Any:
        frames = encode(message)
        sizes.append(sum(memoryview(frame).nbytes for frame in frames))
        return frames

    monkeypatch.setattr(encoder, "encode", weigh)
    return sizes


async def test_wrong_odd_and_hostile_requests_end_cleanly(served: Served) -> None:
    """A slice of `make fuzz`; a good answer asked in between stays what it was."""
    fuzzer = await asyncio.to_thread(
        fuzzer_of, served.engine.options.model_dir, DType.F32, CONTEXT_LENGTH, 5
    )
    found = await fuzz(served.channel, served.redis, fuzzer, 800)
    assert not found.bad
    assert {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION"} <= set(found.statuses)
    assert not served.engine.dead
    async with asyncio.timeout(30):
        while await served.admitted():
            await asyncio.sleep(0.01)


async def test_what_it_announces(served: Served) -> None:
    info = await served.stub.GetDecoderInfo(decoder_pb2.GetDecoderInfoRequest())
    assert (info.width, info.dtype, info.context_length) == (64, "f32", 8192)
    assert len(info.fingerprint) == 32
    assert info.max_running >= 1
    assert info.responses > 0
    await served.answer(served.prompt(BOS, INST, 1040, END_INST))
    later = await served.stub.GetDecoderInfo(decoder_pb2.GetDecoderInfoRequest())
    assert later.responses > info.responses
