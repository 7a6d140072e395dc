"""A real vLLM engine with a LoRA adapter, and one that takes requests by their priority."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from pixtral.internal.v1 import decoder_pb2
from pixtral_core.generation.sampling import Sampling
from pixtral_decoder.request import Prompt
from tests.decoder.engine.served import BOS, END_INST, INST, Served, request_of, serving
from tests.decoder.lora import write_adapter
from tests.support.redis_server import RedisServer
from tests.support.reference import Reference

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_RUNNING = 2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def poet(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The plain model with the weights of the adapter of that name."""
    reference = Reference(checkpoint)
    write_adapter(tmp_path_factory.getbasetemp() / "poet", reference)
    return reference


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    checkpoint: Path,
    redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
    poet: Reference,
) -> AsyncIterator[Served]:
    async with serving(
        checkpoint,
        redis_server,
        max_running=MAX_RUNNING,
        lora_modules={"poet": tmp_path_factory.getbasetemp() / "poet"},
        engine_args={"scheduling_policy": "priority"},
    ) as served:
        yield served


async def test_an_adapter_answers_as_the_model_with_its_weights(
    served: Served, poet: Reference
) -> None:
    image = served.image(5, 7, seed=1)
    plain = served.prompt(BOS, INST, 2001, image, 1001, END_INST)
    with_adapter = replace(plain, request_id="by-poet", adapter="poet")

    answers = await asyncio.gather(served.answer(plain), served.answer(with_adapter))

    expected = [
        await asyncio.to_thread(model.generate, plain.token_ids, [image.pixels], 24)
        for model in (served.reference, poet)
    ]
    assert [answer.token_ids for answer in answers] == expected
    assert expected[0] != expected[1]


async def test_keys_and_values_are_an_adapters_own(served: Served) -> None:
    image = served.image(10, 10, seed=2)
    plain = served.prompt(BOS, INST, image, 1001, END_INST)
    await served.answer(plain)
    with_adapter = replace(plain, request_id="first", adapter="poet")
    assert (await served.answer(with_adapter)).cached_tokens == 0
    again = replace(with_adapter, request_id="second")
    assert (await served.answer(again)).cached_tokens >= 96


async def test_prompt_logprobs_are_an_adapters_own(served: Served, poet: Reference) -> None:
    image = served.image(6, 6, seed=3)
    sampling = Sampling(max_tokens=1, prompt_logprobs=1)
    plain = served.prompt(BOS, INST, image, 1001, 1002, END_INST, sampling=sampling)
    for prompt, model in (
        (plain, served.reference),
        (replace(plain, request_id="by-poet", adapter="poet"), poet),
    ):
        responses = (await served.answer(prompt)).responses
        expected = model.prompt_logprobs(prompt.token_ids, [image.pixels])
        told = [each for response in responses for each in response.prompt_logprobs][1:]
        for token, row, each in zip(prompt.token_ids[1:], expected, told, strict=True):
            assert each.chosen.token_id == token
            assert each.chosen.logprob == pytest.approx(float(row[token]), abs=2e-3)
            # Of a random model's many tokens some are nearly as likely as this one.
            surer, as_sure = (int((row > row[token] + by).sum()) + 1 for by in (2e-3, -2e-3))
            assert surer <= each.chosen.rank <= as_sure
            assert each.top[0].logprob == pytest.approx(float(row.max()), abs=2e-3)


async def test_adapters_are_announced_and_others_are_missing(served: Served) -> None:
    info = await served.stub.GetDecoderInfo(decoder_pb2.GetDecoderInfoRequest())
    assert list(info.adapters) == ["poet"]
    prompt = replace(served.prompt(BOS, INST, 1001, END_INST), adapter="clerk")
    assert (await served.refusal(request_of(prompt))).reason == "ADAPTER_MISSING"


async def test_what_waits_is_taken_by_its_priority(served: Served) -> None:
    endless = Sampling(max_tokens=8000, temperature=0, ignore_eos=True)
    running = [
        served.call(served.prompt(BOS, INST, 1000 + number, END_INST, sampling=endless))
        for number in range(MAX_RUNNING)
    ]
    for call in running:
        await anext(aiter(call))
    order: list[int] = []

    async def wait(prompt: Prompt) -> None:
        async for _ in served.call(prompt):
            break
        order.append(prompt.priority)

    # One place is given free, so that each is over before the next one begins.
    short = Sampling(max_tokens=1, temperature=0)
    waiting = [
        asyncio.create_task(
            wait(
                replace(
                    served.prompt(BOS, INST, 2000 + priority, END_INST, sampling=short),
                    priority=priority,
                )
            )
        )
        for priority in (0, 7, -3, 2)
    ]

    async def all_wait() -> bool:
        metrics = (await served.metrics()).splitlines()
        lines = [line for line in metrics if line.startswith("vllm:num_requests_waiting{")]
        return [float(line.split()[-1]) for line in lines] == [len(waiting)]

    async with asyncio.timeout(60):
        while not await all_wait():
            await asyncio.sleep(0.02)
    running[0].cancel()
    await asyncio.gather(*waiting)
    running[1].cancel()
    assert order == [-3, 0, 2, 7]
    async with asyncio.timeout(60):
        while await served.admitted():
            await asyncio.sleep(0.02)
