import asyncio
import base64
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import pytest
from prometheus_client import REGISTRY

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2
from pixtral_core import limits
from pixtral_core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    Overloaded,
    ServingError,
    Unavailable,
)
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_gateway.api.grpc.from_proto import read_tools
from pixtral_gateway.checks.conversation import Conversation
from pixtral_gateway.pipeline import LOGPROB_BYTES
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from pixtral_gateway.request import Begun, Delta, Event, FinishReason, Request
from pixtral_gateway.tenancy.admission import MAX_IMAGE_BYTES
from pixtral_gateway.tenancy.tenants import Tenant
from pixtral_gateway.upstream.decoder_work import BLOCK_TOKENS
from pixtral_gateway.upstream.placement import rendezvous
from tests.support.fake_tiers import (
    FINGERPRINT,
    FakeDecoder,
    FakeEncoder,
    Responses,
    answers,
    breaks_midway,
    delta,
    never_begins,
    never_ends,
    refuses,
)
from tests.support.gateway_harness import (
    MAX_CONCURRENT,
    Harness,
    ask,
    eventually,
    ever_longer,
    key_of,
)
from tests.support.gateway_pictures import (
    assistant,
    image,
    image_named,
    image_url,
    picture,
    png_of,
    system,
    text,
    user,
)
from tests.support.redis_server import RedisServer

CAT, DOG = picture(40, 30, seed=1), picture(16, 50, seed=2)
QUESTION = text("What is this?")
UNAVAILABLE = Unavailable("going away")


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def store_in(redis: RedisServer, *pictures: bytes) -> None:
    client = redis.client()
    for data in pictures:
        client.set(key_of(sha(data)).redis_key, b"an embedding")
    client.close()


def missing(*indexes: int) -> FailedPrecondition:
    return FailedPrecondition(
        "embeddings are missing", "EMBEDDING_MISSING", {"images": ",".join(map(str, indexes))}
    )


def all_calls(servers: list[FakeEncoder]) -> list[bytes]:
    return [key.image_sha256 for server in servers for key in server.calls]


def owner(encoders: list[FakeEncoder], data: bytes) -> FakeEncoder:
    address = rendezvous(sha(data), [encoder.address for encoder in encoders])[0]
    return next(encoder for encoder in encoders if encoder.address == address)


def serving(decoders: list[FakeDecoder]) -> FakeDecoder:
    (decoder,) = [decoder for decoder in decoders if decoder.calls]
    return decoder


async def begun(events: AsyncGenerator[Event]) -> Delta:
    """The first delta: the prompt's length comes before it."""
    assert isinstance(await anext(events), Begun)
    first = await anext(events)
    assert isinstance(first, Delta)
    return first


def everywhere(decoders: list[FakeDecoder], *behaviours: object) -> None:
    for decoder in decoders:
        decoder.behaviours = list(behaviours)  # type: ignore[arg-type]


async def refusal(gateway: Harness, *messages: chat_pb2.Message) -> ServingError:
    with pytest.raises(ServingError) as refused:
        await gateway.answer(*messages)
    assert gateway.admission.in_use == 0
    return refused.value


async def test_text_is_answered_without_an_encoder(
    gateway: Harness, encoders: list[FakeEncoder], decoders: list[FakeDecoder]
) -> None:
    answer = await gateway.answer(user(text("Hello?")))

    assert answer.text == "Hello world"
    assert [list(d.token_ids) for d in answer.deltas] == [[1001], [1002, 1003]]
    assert answer.deltas[-1].finish_reason is FinishReason.STOP
    assert all_calls(encoders) == []
    usage = answer.finished.usage
    assert usage.prompt_tokens == len(serving(decoders).calls[0].prompt_token_ids)
    assert (usage.image_tokens, usage.cached_tokens, usage.completion_tokens) == (0, 3, 3)
    timings = answer.finished.timings
    assert timings.encode == 0
    assert timings.queue == 0.25
    assert 0 < timings.time_to_first_token <= timings.total
    assert gateway.admission.in_use == 0


async def test_new_images_are_encoded_and_named_to_the_decoder(
    gateway: Harness, encoders: list[FakeEncoder], decoders: list[FakeDecoder], spec: VisionSpec
) -> None:
    answer = await gateway.answer(user(image(CAT), QUESTION, image(DOG), text("And this?")))

    assert sorted(all_calls(encoders)) == sorted([sha(CAT), sha(DOG)])
    (request,) = serving(decoders).calls
    for named, data, grid in zip(
        request.images, (CAT, DOG), (spec.grid(40, 30), spec.grid(16, 50)), strict=True
    ):
        assert (named.rows, named.cols) == (grid.rows, grid.cols)
        assert request.prompt_token_ids[named.offset] == spec.image_token_id
        assert named.key.image_sha256 == sha(data)
        assert (named.key.fingerprint, named.key.scope) == (FINGERPRINT, "public")
        assert named.encoder == owner(encoders, data).address
    assert request.cache_salt == "public"
    assert [(r.sha256, r.width, r.height, r.cached) for r in answer.finished.images] == [
        (sha(CAT).hex(), 40, 30, False),
        (sha(DOG).hex(), 16, 50, False),
    ]
    assert sum(r.tokens for r in answer.finished.images) == answer.finished.usage.image_tokens
    assert answer.finished.timings.encode > 0


async def test_an_image_in_low_detail_is_encoded_and_cached_apart(
    gateway: Harness, encoders: list[FakeEncoder], decoders: list[FakeDecoder], spec: VisionSpec
) -> None:
    large = picture(spec.max_image_size, spec.max_image_size)
    low = image(large)
    low.image.detail = chat_pb2.IMAGE_DETAIL_LOW
    named = image_named(sha(large))
    named.image.detail = chat_pb2.IMAGE_DETAIL_LOW

    answer = await gateway.answer(user(low, image(large), named, QUESTION))

    keys = [key for encoder in encoders for key in encoder.calls]
    assert sorted(key.low_detail for key in keys) == [False, True]
    (request,) = serving(decoders).calls
    assert [each.key.low_detail for each in request.images] == [True, False, True]
    tokens = [report.tokens for report in answer.finished.images]
    half = spec.grid(spec.max_image_size // 2, spec.max_image_size // 2)
    assert tokens[0] == tokens[2] == half.placeholder_length < tokens[1] / 3


async def test_images_in_redis_skip_the_encoder(
    gateway: Harness, redis: RedisServer, encoders: list[FakeEncoder], decoders: list[FakeDecoder]
) -> None:
    store_in(redis, CAT)

    answer = await gateway.answer(user(image(CAT), QUESTION))

    assert all_calls(encoders) == []
    assert [report.cached for report in answer.finished.images] == [True]
    assert answer.finished.timings.encode == 0
    (named,) = serving(decoders).calls[0].images
    assert named.encoder == owner(encoders, CAT).address


async def test_images_beyond_what_the_gateway_holds_are_refused_and_text_is_not(
    gateway: Harness,
) -> None:
    url = f"data:image/png;base64,{base64.b64encode(CAT).decode()}"
    # The file beside the URL that holds it.
    for part, nbytes in ((image(CAT), len(CAT)), (image_url(url), len(url) + len(CAT))):
        with gateway.admission.permit(Tenant("another"), 1) as permit:
            permit.reserve(MAX_IMAGE_BYTES - nbytes + 1)
            with pytest.raises(Overloaded):
                await gateway.answer(user(part, QUESTION))
            await gateway.answer(user(QUESTION))
        with gateway.admission.permit(Tenant("another"), 1) as permit:
            permit.reserve(MAX_IMAGE_BYTES - nbytes)
            await gateway.answer(user(part, QUESTION))
            # Its bytes were given back.
            permit.reserve(nbytes)


async def test_only_misses_are_encoded(
    gateway: Harness, redis: RedisServer, encoders: list[FakeEncoder]
) -> None:
    store_in(redis, DOG)

    answer = await gateway.answer(
        user(image(CAT), QUESTION), assistant(text("A cat.")), user(image(DOG), QUESTION)
    )

    assert all_calls(encoders) == [sha(CAT)]
    assert [report.cached for report in answer.finished.images] == [False, True]


async def test_image_that_comes_twice_is_encoded_once(
    gateway: Harness, encoders: list[FakeEncoder], decoders: list[FakeDecoder]
) -> None:
    answer = await gateway.answer(user(image(CAT), image(CAT), QUESTION))

    assert all_calls(encoders) == [sha(CAT)]
    assert len(serving(decoders).calls[0].images) == len(answer.finished.images) == 2


async def test_misses_are_encoded_at_the_same_time(
    gateway: Harness, encoders: list[FakeEncoder]
) -> None:
    for encoder in encoders:
        encoder.hold.clear()
    running = asyncio.create_task(gateway.answer(user(image(CAT), image(DOG), QUESTION)))
    await eventually(lambda: len(all_calls(encoders)) == 2)
    for encoder in encoders:
        encoder.hold.set()

    assert (await running).text == "Hello world"


async def test_embedding_missing_at_the_decoder_is_encoded_again_once(
    gateway: Harness, redis: RedisServer, encoders: list[FakeEncoder], decoders: list[FakeDecoder]
) -> None:
    store_in(redis, CAT, DOG)
    everywhere(decoders, refuses(missing(1)), answers)

    answer = await gateway.answer(user(image(CAT), QUESTION, image(DOG)))

    assert all_calls(encoders) == [sha(DOG)]
    assert [report.cached for report in answer.finished.images] == [True, False]
    assert answer.text == "Hello world"
    first, second = serving(decoders).calls
    assert first.request_id != second.request_id


async def test_embedding_missing_again_is_unavailable(
    gateway: Harness, redis: RedisServer, encoders: list[FakeEncoder], decoders: list[FakeDecoder]
) -> None:
    store_in(redis, CAT)
    everywhere(decoders, refuses(missing(0)))

    refused = await refusal(gateway, user(image(CAT), QUESTION))

    assert isinstance(refused, Unavailable)
    assert refused.retry_after
    assert len(serving(decoders).calls) == 2


async def test_decoder_that_goes_before_the_first_token_is_unseen(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    await gateway.answer(user(text("Hello?")))
    chosen = serving(decoders)
    chosen.behaviours = [refuses(UNAVAILABLE)]

    answer = await gateway.answer(user(text("Hello?")))

    assert answer.text == "Hello world"
    assert [len(decoder.calls) for decoder in decoders if decoder is not chosen] == [1]


async def test_full_decoder_is_passed_over_and_kept(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    await gateway.answer(user(text("Hello?")))
    chosen = serving(decoders)
    chosen.behaviours = [refuses(Overloaded("the engine is full")), answers]

    assert (await gateway.answer(user(text("Hello?")))).text == "Hello world"
    assert [len(decoder.calls) for decoder in decoders if decoder is not chosen] == [1]
    await gateway.answer(user(text("Hello?")))
    assert len(chosen.calls) == 3


async def test_tools_are_a_part_of_what_prompts_begin_with(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    def asked(i: int, *more: chat_pb2.Message) -> Request:
        tools = read_tools(chat_pb2.Chat(tools=[chat_pb2.Tool(name=f"tool{i}")]))
        first = ask(user(text("Hello?")), *more)
        assert isinstance(first.conversation, Conversation)
        return replace(first, conversation=replace(first.conversation, tools=tools))

    owners: list[list[int]] = []
    for i in range(20):
        before = [len(decoder.calls) for decoder in decoders]
        for more in ([], [assistant(text("Hi.")), user(text("So?"))]):
            async for _ in gateway.pipeline.stream(asked(i, *more)):
                pass
        after = [len(decoder.calls) for decoder in decoders]
        owners.append([now - then for now, then in zip(after, before, strict=True)])

    # All turns of a conversation on one replica, and not all conversations on the same.
    assert all(sorted(counts) == [0, 2] for counts in owners)
    assert [0, 2] in owners
    assert [2, 0] in owners


async def test_dead_decoder_is_passed_over_and_found_again(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    await gateway.answer(user(text("Hello?")))
    chosen = serving(decoders)
    (other,) = [decoder for decoder in decoders if decoder is not chosen]
    await chosen.stop()

    assert (await gateway.answer(user(text("Hello?")))).text == "Hello world"
    assert len(other.calls) == 1

    await chosen.start()
    replica = next(d for d in gateway.tiers.decoders if d.address == chosen.address)
    await eventually(lambda: replica.contract)
    await gateway.answer(user(text("Hello?")))
    assert len(chosen.calls) == 2


async def test_no_decoder_is_unavailable_with_a_time_to_retry(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    await asyncio.gather(*(decoder.stop() for decoder in decoders))

    refused = await refusal(gateway, user(text("Hello?")))

    assert isinstance(refused, Unavailable)
    assert refused.retry_after


async def test_decoders_refusal_is_relayed(gateway: Harness, decoders: list[FakeDecoder]) -> None:
    everywhere(decoders, refuses(Overloaded("the engine is full", 2.5)))

    refused = await refusal(gateway, user(text("Hello?")))

    assert isinstance(refused, Overloaded)
    assert refused.retry_after == 2.5


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("sampling.top_k", "sampling.top_k"), ("images[0].rows", "messages"), ("", "messages")],
)
async def test_decoders_refusal_names_a_field_of_the_clients(
    gateway: Harness, decoders: list[FakeDecoder], theirs: str, ours: str
) -> None:
    everywhere(decoders, refuses(InvalidRequest(theirs, "is not taken", "SOME_REASON")))

    refused = await refusal(gateway, user(text("Hello?")))

    assert refused.violations == ((ours, "is not taken"),)
    assert refused.reason == "SOME_REASON"


async def test_decoder_of_other_weights_is_passed_over(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    await gateway.answer(user(text("Hello?")))
    chosen = serving(decoders)
    chosen.behaviours = [refuses(FailedPrecondition("other weights", "FINGERPRINT_MISMATCH"))]

    assert (await gateway.answer(user(text("Hello?")))).text == "Hello world"


async def test_encoder_of_other_weights_is_passed_over(
    gateway: Harness, encoders: list[FakeEncoder]
) -> None:
    other = owner(encoders, CAT)
    other.refusal = FailedPrecondition("other weights", "FINGERPRINT_MISMATCH")

    assert (await gateway.answer(user(image(CAT), QUESTION))).text == "Hello world"
    assert all_calls(encoders) == [sha(CAT)] * 2


async def test_dead_encoder_is_passed_over(
    gateway: Harness, encoders: list[FakeEncoder], decoders: list[FakeDecoder]
) -> None:
    dead = owner(encoders, CAT)
    (other,) = [encoder for encoder in encoders if encoder is not dead]
    await dead.stop()

    await gateway.answer(user(image(CAT), QUESTION))

    assert all_calls([other]) == [sha(CAT)]
    (named,) = serving(decoders).calls[0].images
    assert named.encoder == other.address


async def test_without_encoders_text_and_cached_images_are_answered(
    gateway: Harness, redis: RedisServer, encoders: list[FakeEncoder]
) -> None:
    store_in(redis, CAT)
    await asyncio.gather(*(encoder.stop() for encoder in encoders))

    assert (await gateway.answer(user(text("Hello?")))).text == "Hello world"
    assert (await gateway.answer(user(image(CAT), QUESTION))).text == "Hello world"


async def test_without_encoders_a_new_image_is_unavailable(
    gateway: Harness, encoders: list[FakeEncoder], decoders: list[FakeDecoder]
) -> None:
    everywhere(decoders, refuses(missing(0)))
    await asyncio.gather(*(encoder.stop() for encoder in encoders))

    refused = await refusal(gateway, user(image(CAT), QUESTION))

    assert isinstance(refused, Unavailable)
    assert refused.retry_after


async def test_without_redis_the_encoders_memory_answers(
    spec: VisionSpec,
    prompts: PromptEncoder,
    encoders: list[FakeEncoder],
    decoders: list[FakeDecoder],
) -> None:
    gateway = await Harness.started(spec, prompts, "redis://127.0.0.1:1/0", encoders, decoders)

    first = await gateway.answer(user(image(CAT), QUESTION))
    second = await gateway.answer(user(image(CAT), QUESTION))

    assert [r.cached for r in (*first.finished.images, *second.finished.images)] == [False, True]
    assert all_calls(encoders) == [sha(CAT)] * 2
    (named,) = serving(decoders).calls[1].images
    assert named.encoder == owner(encoders, CAT).address
    await gateway.stop()


async def test_image_that_the_encoder_refuses_names_the_clients_field(
    gateway: Harness, encoders: list[FakeEncoder], decoders: list[FakeDecoder]
) -> None:
    for encoder in encoders:
        encoder.refusal = InvalidRequest("image", "the file is truncated", "IMAGE_MALFORMED")

    refused = await refusal(
        gateway, user(QUESTION), assistant(QUESTION), user(QUESTION, image(CAT))
    )

    assert refused.violations == (("messages[2].content[1].image.data", "the file is truncated"),)
    assert refused.reason == "IMAGE_MALFORMED"
    assert not any(decoder.calls for decoder in decoders)


async def test_one_refused_image_cancels_the_encoding_of_the_others(
    gateway: Harness, encoders: list[FakeEncoder]
) -> None:
    refusing, holding = encoders
    bad, good = (
        next(
            data
            for data in (picture(20, 20, seed=seed) for seed in range(100))
            if owner(encoders, data) is encoder
        )
        for encoder in (refusing, holding)
    )
    refusing.refusal = InvalidRequest("image", "the file is truncated", "IMAGE_MALFORMED")
    holding.hold.clear()

    refused = await refusal(gateway, user(image(good), image(bad), QUESTION))

    assert refused.violations[0][0] == "messages[0].content[1].image.data"
    await eventually(lambda: holding.cancelled == len(holding.calls))


async def test_size_that_the_encoder_sees_otherwise_is_refused(
    gateway: Harness, encoders: list[FakeEncoder], spec: VisionSpec
) -> None:
    for encoder in encoders:
        encoder.spec = replace(spec, max_image_size=16)

    refused = await refusal(gateway, user(image(CAT), QUESTION))

    assert refused.violations[0][0] == "messages[0].content[0].image.data"


async def test_bad_image_reaches_no_tier(
    gateway: Harness, encoders: list[FakeEncoder], decoders: list[FakeDecoder]
) -> None:
    refused = await refusal(gateway, user(image(CAT), image(png_of(50_000, 50_000)), QUESTION))

    assert refused.violations[0][0] == "messages[0].content[1].image.data"
    assert all_calls(encoders) == []
    assert not any(decoder.calls for decoder in decoders)


async def test_prompt_longer_than_the_context_is_refused(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    refused = await refusal(gateway, user(text("word " * 40_000)))

    assert refused.reason == "PROMPT_TOO_LONG"
    assert refused.violations[0][0] == "messages"
    assert not any(decoder.calls for decoder in decoders)


async def test_closing_the_stream_cancels_the_decoder_and_frees_the_permit(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    everywhere(decoders, never_ends)
    async with aclosing(gateway.pipeline.stream(ask(user(text("Hello?"))))) as events:
        await begun(events)
        assert gateway.admission.in_use == 1

    assert gateway.admission.in_use == 0
    assert no_work_is_left(gateway)
    await eventually(lambda: serving(decoders).cancelled == 1)


async def test_cancelled_request_cancels_the_decoder_and_frees_the_permit(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    everywhere(decoders, never_begins)
    running = asyncio.create_task(gateway.answer(user(text("Hello?"))))
    await eventually(lambda: any(decoder.calls for decoder in decoders))
    running.cancel()
    await asyncio.wait((running,))

    assert running.cancelled()
    assert gateway.admission.in_use == 0
    assert no_work_is_left(gateway)
    await eventually(lambda: serving(decoders).cancelled == 1)


async def test_cancelled_request_cancels_the_encoders(
    gateway: Harness, encoders: list[FakeEncoder], decoders: list[FakeDecoder]
) -> None:
    for encoder in encoders:
        encoder.hold.clear()
    running = asyncio.create_task(gateway.answer(user(image(CAT), image(DOG), QUESTION)))
    await eventually(lambda: len(all_calls(encoders)) == 2)
    running.cancel()
    await asyncio.wait((running,))

    assert gateway.admission.in_use == 0
    await eventually(lambda: sum(encoder.cancelled for encoder in encoders) == 2)
    assert not any(decoder.calls for decoder in decoders)


async def test_deadline_at_the_decoder(gateway: Harness, decoders: list[FakeDecoder]) -> None:
    everywhere(decoders, never_ends)

    for seconds in ever_longer():
        with pytest.raises(DeadlineExceeded):
            await gateway.answer(user(text("Hello?")), seconds=seconds)
        assert gateway.admission.in_use == 0
        assert no_work_is_left(gateway)
        if any(decoder.calls for decoder in decoders):
            break

    await eventually(lambda: serving(decoders).cancelled)


async def test_deadline_at_the_encoder(
    gateway: Harness, encoders: list[FakeEncoder], decoders: list[FakeDecoder]
) -> None:
    for encoder in encoders:
        encoder.hold.clear()

    for seconds in ever_longer():
        with pytest.raises(DeadlineExceeded):
            await gateway.answer(user(image(CAT), QUESTION), seconds=seconds)
        assert gateway.admission.in_use == 0
        if owner(encoders, CAT).calls:
            break

    await eventually(lambda: owner(encoders, CAT).cancelled)
    assert not any(decoder.calls for decoder in decoders)


async def test_deadline_ends_a_request_whose_client_reads_nothing(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    everywhere(decoders, never_ends)

    has_read = False

    async def reads_one(seconds: float) -> None:
        nonlocal has_read
        async with aclosing(
            gateway.pipeline.stream(ask(user(text("Hello?")), seconds=seconds))
        ) as events:
            await begun(events)
            has_read = True
            await asyncio.Event().wait()

    for seconds in ever_longer():
        before = ended("DEADLINE_EXCEEDED"), ended("CANCELLED")
        running = asyncio.create_task(reads_one(seconds))
        await asyncio.wait((running,), timeout=60)
        assert running.done()
        assert gateway.admission.in_use == 0
        assert (ended("DEADLINE_EXCEEDED"), ended("CANCELLED")) == (before[0] + 1, before[1])
        if has_read:
            break
        assert running.cancelled() or isinstance(running.exception(), DeadlineExceeded)

    assert running.cancelled()


async def test_beyond_the_permits_is_refused_at_once(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    everywhere(decoders, never_ends)
    running = [
        asyncio.create_task(gateway.answer(user(text("Hello?")))) for _ in range(MAX_CONCURRENT)
    ]
    await eventually(lambda: sum(len(d.calls) for d in decoders) == MAX_CONCURRENT)

    with pytest.raises(Overloaded) as refused:
        await gateway.answer(user(text("Hello?")))
    asked = ask(user(text("Hello?")))
    assert isinstance(asked.conversation, Conversation)
    with pytest.raises(Overloaded):
        await gateway.pipeline.count(asked.conversation, asked.tenant)

    assert refused.value.retry_after
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    assert gateway.admission.in_use == 0


async def test_data_url_is_the_image_that_it_holds(
    gateway: Harness, encoders: list[FakeEncoder]
) -> None:
    url = "data:image/png;base64," + base64.b64encode(CAT).decode()

    answer = await gateway.answer(user(image_url(url), QUESTION))

    assert [report.sha256 for report in answer.finished.images] == [sha(CAT).hex()]
    assert all_calls(encoders) == [sha(CAT)]


async def test_request_takes_a_permit_for_each_of_its_answers(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    everywhere(decoders, never_ends)
    hello = user(text("Hello?"))
    most, more = (chat_pb2.SamplingParams(n=MAX_CONCURRENT + i) for i in range(2))
    async with aclosing(gateway.pipeline.stream(ask(hello, sampling=most))) as events:
        await begun(events)
        assert gateway.admission.in_use == MAX_CONCURRENT
        assert sum(decoder.outstanding for decoder in gateway.tiers.decoders) == MAX_CONCURRENT
        with pytest.raises(Overloaded):
            await gateway.answer(hello)

    assert gateway.admission.in_use == 0
    assert not any(decoder.outstanding for decoder in gateway.tiers.decoders)
    with pytest.raises(InvalidRequest) as refused:
        await anext(gateway.pipeline.stream(ask(hello, sampling=more)))
    assert refused.value.violations[0][0] == "sampling.n"


async def test_conversation_stays_with_its_decoder(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    for i in range(6):
        before = [len(decoder.calls) for decoder in decoders]
        turns = [system(text(f"You are number {i}.")), user(image(CAT), QUESTION)]
        await gateway.answer(*turns)
        await gateway.answer(*turns, assistant(text("A cat.")), user(text("Sure?")))
        await gateway.answer(turns[0], user(text("Another question."), image(CAT)))
        calls = [len(d.calls) - n for d, n in zip(decoders, before, strict=True)]
        assert sorted(calls) == [0, 3]


def no_work_is_left(gateway: Harness) -> bool:
    decoders = list(gateway.tiers.decoders)
    works = [decoder.work for decoder in decoders]
    return not any(each.outstanding for each in decoders) and not any(
        each.tokens or each.answers for each in works
    )


async def test_decoder_learns_what_it_has_to_compute_and_says_what_it_has_to_do(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    asked = user(image(picture(640, 640, seed=3)), QUESTION)

    async def busy(request: decoder_pb2.GenerateRequest) -> Responses:
        first = delta("Hello", 1001)
        first.load.CopyFrom(
            decoder_pb2.DecoderLoad(new_tokens=7000, answers=9, tokens_per_second=25_000)
        )
        yield first
        yield delta(" world", 1002, finish=chat_pb2.FINISH_REASON_STOP)

    everywhere(decoders, busy)
    for _ in range(2):
        await gateway.answer(asked)

    (decoder,) = [each for each in decoders if each.calls]
    (replica,) = [each for each in gateway.tiers.decoders if each.address == decoder.address]
    first, second = decoder.calls
    assert first.new_tokens == len(first.prompt_token_ids)
    # Whole blocks were computed; the question's end was not in one.
    assert 0 < second.new_tokens < BLOCK_TOKENS
    assert replica.work.left(0.0) > 7000
    assert replica.work.tokens_per_second == 25_000
    assert no_work_is_left(gateway)


def ended(code: str) -> float:
    value = REGISTRY.get_sample_value("pixtral_gateway_requests_total", {"code": code})
    assert value is not None
    return value


async def test_ends_are_counted_by_their_code(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    codes = ("OK", "UNAVAILABLE", "INTERNAL", "CANCELLED")
    before = [ended(code) for code in codes]
    await gateway.answer(user(text("Hello?")))
    everywhere(decoders, breaks_midway(UNAVAILABLE))
    await refusal(gateway, user(text("Hello?")))

    assert [ended(code) - n for code, n in zip(codes, before, strict=True)] == [1, 1, 0, 0]


async def test_sampling_is_passed_on_as_it_is(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    sampling = chat_pb2.SamplingParams(temperature=0, max_tokens=5, stop=["\n"], seed=7)
    async with aclosing(
        gateway.pipeline.stream(ask(user(text("Hello?")), sampling=sampling))
    ) as events:
        async for _ in events:
            pass

    assert serving(decoders).calls[0].sampling == sampling


async def test_first_token_is_timed_when_it_comes(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    begin = asyncio.Event()

    async def waits(_: object) -> object:
        yield delta("Hello", 1001)
        await begin.wait()
        yield delta(" world", 1002)

    everywhere(decoders, waits)
    async with aclosing(gateway.pipeline.stream(ask(user(text("Hello?"))))) as events:
        first = await begun(events)
        assert first.text == "Hello"
        begin.set()
        rest = [event async for event in events]

    assert len(rest) == 2


async def test_an_answer_that_is_gathered_counts_for_what_it_takes(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    more = asyncio.Event()
    likely = chat_pb2.Logprob(token_id=7, text="x", logprob=-1.0, rank=1)
    each = chat_pb2.TokenLogprobs(chosen=likely, top=[likely] * 19)

    async def long(request: decoder_pb2.GenerateRequest) -> Responses:
        for _ in range(100):
            response = delta("x" * 20, *[7] * 20)
            response.delta.logprobs.extend([each] * 20)
            yield response
        await more.wait()
        yield delta("", 2, finish=chat_pb2.FINISH_REASON_STOP)

    for decoder in decoders:
        decoder.behaviours = [long]
    asked = ask(user(QUESTION), sampling=chat_pb2.SamplingParams(logprobs=19))
    for is_gathered in (False, True):
        more.clear()
        events = gateway.pipeline.stream(replace(asked, is_gathered=is_gathered))
        answering = asyncio.create_task(drained(events))
        await eventually(lambda: sum(decoder.responses for decoder in decoders) % 101 == 100)
        if is_gathered:
            held = 40_000 * LOGPROB_BYTES
            await eventually(lambda: gateway.admission.held_bytes >= held - (64 << 10))  # noqa: B023
        else:
            assert gateway.admission.held_bytes == 0
        more.set()
        await answering
        assert gateway.admission.held_bytes == 0


async def test_an_answer_beyond_what_may_be_gathered_ends(
    gateway: Harness, decoders: list[FakeDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOGPROBS_IN_ALL", replace(limits.LOGPROBS_IN_ALL, most=100))
    likely = chat_pb2.Logprob(token_id=7, text="x", logprob=-1.0, rank=1)

    async def endless(request: decoder_pb2.GenerateRequest) -> Responses:
        for _ in range(20):
            response = delta("x", 7)
            response.delta.logprobs.add(chosen=likely, top=[likely] * 9)
            yield response
        await asyncio.Event().wait()

    for decoder in decoders:
        decoder.behaviours = [endless]
    asked = ask(user(QUESTION), sampling=chat_pb2.SamplingParams(logprobs=9))
    with pytest.raises(InvalidRequest, match="stream it"):
        await drained(gateway.pipeline.stream(replace(asked, is_gathered=True)))
    await eventually(lambda: not any(each.outstanding for each in gateway.tiers.decoders))
    assert gateway.admission.in_use == 0


async def test_a_long_prompt_counts_for_what_it_takes(
    gateway: Harness, decoders: list[FakeDecoder]
) -> None:
    for decoder in decoders:
        decoder.behaviours = [never_ends]
    # Four bytes a character, for one that needs them.
    words = text("\U0001f600" + "hello " * 15_000)
    answering = asyncio.create_task(drained(gateway.pipeline.stream(ask(user(words)))))
    await eventually(lambda: sum(decoder.responses for decoder in decoders))
    assert gateway.admission.held_bytes >= 4 * 90_000 - (64 << 10)
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert gateway.admission.held_bytes == 0


async def drained(events: AsyncGenerator[Event]) -> None:
    async with aclosing(events):
        async for _ in events:
            pass
