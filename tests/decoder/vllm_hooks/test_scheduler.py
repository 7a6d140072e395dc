"""How many tokens a step takes, by the decision alone and by what a real engine's steps were."""

import asyncio
import copy
import gc
import json
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
import torch

from pixtral_core.generation.sampling import Sampling
from pixtral_decoder.engine.engine import DecoderEngine
from pixtral_decoder.engine.engine_args import EngineOptions, engine_args
from pixtral_decoder.request import Prompt
from tests.decoder.prompts import text
from tests.decoder.steps_seen import SCHEDULER, STEPS_SEEN
from tests.support.reference import Reference
from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm import SamplingParams
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request
    from vllm.v1.structured_output import StructuredOutputManager

    from pixtral_decoder.vllm_hooks import scheduler as scheduler_hook
    from pixtral_decoder.vllm_hooks.scheduler import (
        CHUNKED_PREFILL_SIZE,
        LOGITS_TOKENS,
        scheduler,
        writes_on,
    )

pytestmark = pytest.mark.asyncio(loop_scope="module")

MOST_TOKENS = 8192
LENGTH = 6000
SLOTS = 3


def request(
    *,
    prompt: int = 100,
    computed: int = 100,
    placeholders: int = 0,
    max_tokens: int = 10,
) -> SimpleNamespace:
    """As vLLM's scheduler knows one that runs."""
    return SimpleNamespace(
        num_prompt_tokens=prompt,
        num_computed_tokens=computed,
        num_output_placeholders=placeholders,
        max_tokens=max_tokens,
        is_prefill_chunk=computed < prompt,
    )


@pytest.mark.parametrize(
    ("one", "does"),
    [
        pytest.param(request(computed=60), False, id="in its prompt"),
        pytest.param(request(), True, id="its first token is made"),
        pytest.param(request(placeholders=1), True, id="its first token is being made"),
        pytest.param(request(computed=108, placeholders=1), True, id="one more is to be made"),
        pytest.param(request(computed=109, placeholders=1), False, id="its last is being made"),
        pytest.param(request(placeholders=1, max_tokens=1), False, id="the only one is being made"),
    ],
)
async def test_an_answer_goes_on_while_it_needs_another_step(
    one: SimpleNamespace, does: bool
) -> None:
    assert writes_on(one) is does


async def test_what_the_user_names_is_what_vllm_is_given(checkpoint: Path) -> None:
    plain = engine_args(EngineOptions(checkpoint))
    assert plain.scheduler_cls == "pixtral_decoder.vllm_hooks.scheduler.scheduler"
    # vLLM's own choice.
    assert plain.max_num_batched_tokens is None
    more = {"scheduler_cls": None, "max_num_batched_tokens": 1024}
    given = engine_args(EngineOptions(checkpoint, more=more))
    assert (given.scheduler_cls, given.max_num_batched_tokens) == (None, 1024)
    assert engine_args(EngineOptions(checkpoint, max_running=3000)).max_num_batched_tokens == 3000


@pytest.fixture(scope="module")
def config(checkpoint: Path) -> Any:
    """vLLM's own of an engine, where a GPU's is scheduled: a step ahead of its tokens."""
    more = {"enable_prefix_caching": False, "max_num_batched_tokens": MOST_TOKENS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = engine_args(EngineOptions(checkpoint, more=more)).create_engine_config()
    # On a CPU vLLM does not.
    config.scheduler_config.async_scheduling = True
    config.cache_config.num_gpu_blocks = 4096
    return config


class Ahead:
    """A scheduler without an engine, which begins a step before the last one's tokens are known."""

    def __init__(self, config: Any, make: Callable[..., Any] = scheduler) -> None:
        spec = FullAttentionSpec(block_size=32, num_kv_heads=2, head_size=32, dtype=torch.float32)
        self.scheduler = make(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(4096, [], [KVCacheGroupSpec(["layer"], spec)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=32,
        )
        self._under_way: Any = None

    def add(
        self,
        name: str,
        length: int,
        max_tokens: int,
        tenant: str | None = None,
        prompt_logprobs: int | None = None,
    ) -> None:
        sampling = SamplingParams(
            max_tokens=max_tokens, ignore_eos=True, prompt_logprobs=prompt_logprobs
        )
        self.scheduler.add_request(Request(name, [1] * length, sampling, None, cache_salt=tenant))

    def until(self, name: str, most: int = 400) -> list[dict[str, int]]:
        """Steps until the request has ended; what each of them took."""
        steps: list[dict[str, int]] = []
        while name in self.scheduler.requests:
            steps.append(self.step())
            assert len(steps) <= most
        return steps

    def step(self) -> dict[str, int]:
        """The tokens that the next step takes, by request; then the one before it ends."""
        ended, output = self._under_way, self.scheduler.schedule()
        requests = self.scheduler.requests
        # Whose prompt the step completes is known as it begins.
        samples = {
            name for name in output.num_scheduled_tokens if not requests[name].is_prefill_chunk
        }
        self._under_way = output, samples
        if ended is not None:
            scheduled, sampling = ended
            names = list(scheduled.num_scheduled_tokens)
            sampled = [[1000] if name in sampling else [] for name in names]
            made = ModelRunnerOutput(names, {name: n for n, name in enumerate(names)}, sampled)
            self.scheduler.update_from_output(scheduled, made)
        taken: dict[str, int] = output.num_scheduled_tokens
        return taken


async def test_still_there() -> None:
    assert_still_there(scheduler_hook)


async def test_still_needed_while_vllms_own_knows_no_tenants(config: Any) -> None:
    """Once this fails, vLLM's own scheduler may take turns among tenants."""
    stock = Ahead(config, AsyncScheduler)
    for number in range(config.scheduler_config.max_num_seqs):
        stock.add(f"eve-{number}", 40, 100, tenant="eve")
    stock.step()
    stock.add("bob", 40, 4, tenant="bob")
    assert len(stock.until("bob")) > 100


async def test_still_needed_while_vllms_own_takes_a_whole_prompt_beside_an_answer(
    config: Any,
) -> None:
    """Once this fails, vLLM's own scheduler may do: `pixtral_decoder.vllm_hooks.scheduler`."""
    stock = Ahead(config, AsyncScheduler)
    stock.add("answer", 100, max_tokens=10)
    stock.step()
    stock.add("prompt", LENGTH, max_tokens=1)
    assert stock.step() == {"answer": 1, "prompt": LENGTH}


async def test_steps_begun_before_the_last_ones_tokens_are_known(config: Any) -> None:
    ahead = Ahead(config)
    assert isinstance(ahead.scheduler, AsyncScheduler)
    ahead.add("one token", LENGTH, max_tokens=1)
    assert ahead.step() == {"one token": LENGTH}
    # That one is not answered yet, and needs no more steps.
    ahead.add("answer", LENGTH, max_tokens=3)
    assert ahead.step() == {"answer": LENGTH}
    # Two steps are as yet to come for this one.
    ahead.add("prompt", LENGTH, max_tokens=1)
    small = {"answer": 1, "prompt": CHUNKED_PREFILL_SIZE - 1}
    assert [ahead.step(), ahead.step()] == [small, small]
    assert ahead.step() == {"prompt": LENGTH - 2 * (CHUNKED_PREFILL_SIZE - 1)}


async def test_steps_beside_answers_have_the_size_that_is_set(
    config: Any, checkpoint: Path
) -> None:
    options = EngineOptions(checkpoint, chunked_prefill_size=4000)
    larger = copy.copy(config)
    larger.additional_config = engine_args(options).additional_config
    ahead = Ahead(larger)
    ahead.add("answer", 100, max_tokens=10)
    ahead.step()
    ahead.add("prompt", LENGTH, max_tokens=1)
    assert ahead.step() == {"answer": 1, "prompt": 3999}
    assert ahead.step() == {"answer": 1, "prompt": LENGTH - 3999}
    ahead.until("answer")
    # A longer step for prompts' log-probabilities would need more memory for logits.
    ahead.add("logprobs", LENGTH, max_tokens=1, prompt_logprobs=1)
    assert ahead.step() == {"logprobs": LOGITS_TOKENS}


async def test_the_size_of_steps_goes_beside_the_additional_config_of_the_user(
    checkpoint: Path,
) -> None:
    more = {"additional_config": {"theirs": 1}}
    given = engine_args(EngineOptions(checkpoint, chunked_prefill_size=7, more=more))
    assert given.additional_config == {"theirs": 1, "chunked_prefill_size": 7}
    assert engine_args(EngineOptions(checkpoint)).additional_config == {}


async def test_one_tenant_has_all_slots_until_another_wants_one(config: Any) -> None:
    ahead = Ahead(config)
    slots = config.scheduler_config.max_num_seqs
    for number in range(slots):
        ahead.add(f"eve-{number}", 40, 50, tenant="eve")
    ahead.step()
    assert len(ahead.step()) == slots
    ahead.add("bob", 40, 4, tenant="bob")
    assert ahead.step()["bob"] == 40
    # One of the others has made room, and goes on as soon as there is some.
    steps = ahead.until("bob")
    assert len(steps) <= 6
    assert all(len(step) == slots for step in steps[:3])
    ahead.step()
    assert len(ahead.step()) == slots
    for number in range(slots):
        ahead.until(f"eve-{number}")
    assert not ahead.scheduler.requests


async def test_what_gave_its_slot_away_is_answered_in_full(config: Any) -> None:
    ahead = Ahead(config)
    slots = config.scheduler_config.max_num_seqs
    given: dict[str, int] = {}
    for number in range(slots):
        ahead.add(f"eve-{number}", 40, 30, tenant="eve")
        given[f"eve-{number}"] = 0
    ahead.step()
    for number in range(slots):
        ahead.add(f"bob-{number}", 40, 30, tenant="bob")
        given[f"bob-{number}"] = 0
    requests = dict(ahead.scheduler.requests)
    while ahead.scheduler.requests:
        ahead.step()
    assert {request.num_output_tokens for request in requests.values()} == {30}
    # As many as are too many give way, each of them once.
    assert sum(request.num_preemptions for request in requests.values()) == slots // 2


async def test_a_long_prompt_waits_for_a_short_one_of_another_tenant(config: Any) -> None:
    ahead = Ahead(config)
    ahead.add("eve", 30_000, 1, tenant="eve")
    ahead.step()
    ahead.add("bob", 40, 4, tenant="bob")
    steps = ahead.until("bob")
    # The next step is bob's, and no later one is large.
    assert steps[0] == {"bob": 40}
    assert len(steps) <= 6
    assert max(sum(step.values()) for step in steps[:4]) <= CHUNKED_PREFILL_SIZE
    assert "eve" in ahead.scheduler.requests
    ahead.until("eve")


async def test_long_prompts_of_two_tenants_are_taken_in_by_turns(config: Any) -> None:
    ahead = Ahead(config)
    for number in range(4):
        ahead.add(f"eve-{number}", 15_000, 1, tenant="eve")
    ahead.step()
    ahead.add("bob", 15_000, 1, tenant="bob")
    steps = ahead.until("bob")
    taken = {"eve": 0, "bob": 0}
    # Behind bob's last, which is seen to have ended a step later, eve has the next for herself.
    for step in steps[:-1]:
        for name, count in step.items():
            taken[name.partition("-")[0]] += count
    assert taken["bob"] == 15_000
    assert taken["eve"] <= 15_000 + 2 * CHUNKED_PREFILL_SIZE


async def test_a_tenant_that_has_all_memory_makes_room(config: Any) -> None:
    """There is memory for 131,072 tokens."""
    ahead = Ahead(config)
    for number in range(5):
        ahead.add(f"eve-{number}", 25_000, 3000, tenant="eve")
    for _ in range(100):
        ahead.step()
    assert ahead.scheduler.kv_cache_manager.usage > 0.9
    ahead.add("bob", 20_000, 4, tenant="bob")
    assert len(ahead.until("bob")) < 60
    assert all(f"eve-{number}" in ahead.scheduler.requests for number in range(5))


@dataclass(frozen=True, slots=True)
class Watched:
    engine: DecoderEngine
    seen: Path
    reference: Reference

    def steps(self) -> list[dict[str, int]]:
        """The tokens that each step since the last call took, by request."""
        lines = self.seen.read_text().splitlines()
        self.seen.write_text("")
        return [json.loads(line) for line in lines]

    async def answer(self, prompt: Prompt) -> list[int]:
        async with aclosing(self.engine.generate(prompt, ())) as deltas:
            return [token async for delta in deltas for token in delta.token_ids]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Watched]:
    seen = tmp_path_factory.mktemp("steps") / "seen"
    more = {"max_num_batched_tokens": MOST_TOKENS, "scheduler_cls": SCHEDULER}
    options = EngineOptions(
        checkpoint, dtype="float32", context_length=8192, max_running=SLOTS, more=more
    )
    engine = DecoderEngine(options)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # vLLM's own: at import, while it loads, and of sockets that it leaves open.
        warnings.simplefilter("ignore")
        patch.setenv(STEPS_SEEN, str(seen))
        try:
            await engine.start()
            watched = Watched(engine, seen, Reference(checkpoint))
            watched.steps()
            yield watched
        finally:
            await engine.shutdown()
            gc.collect()


async def test_prompts_with_nothing_more_to_write_do_not_make_steps_small(
    watched: Watched,
) -> None:
    one = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)
    for number in range(3):
        await watched.answer(text(f"one-{number}", LENGTH, one))
    assert [sum(step.values()) for step in watched.steps()] == [LENGTH] * 3


async def test_a_long_prompt_is_one_step_and_small_ones_where_an_answer_waits(
    watched: Watched,
) -> None:
    sampling = Sampling(max_tokens=8, temperature=0.0, ignore_eos=True)
    prompt = text("beside", LENGTH, sampling)
    whole = await watched.answer(text("whole", LENGTH, sampling))
    assert [sum(step.values()) for step in watched.steps()] == [LENGTH] + [1] * 7
    long = Sampling(max_tokens=2000, temperature=0.0, ignore_eos=True)
    async with aclosing(watched.engine.generate(text("stream", 40, long), ())) as stream:
        await anext(stream)
        beside = await watched.answer(prompt)
        steps = watched.steps()
    by_name = [{name.rsplit("-", 1)[0]: count for name, count in step.items()} for step in steps]
    pieces = [step for step in by_name if step.get("beside", 0) > 1]
    assert sum(step["beside"] for step in pieces) == LENGTH
    assert len(pieces) == -(-LENGTH // (CHUNKED_PREFILL_SIZE - 1))
    # The answer goes on in each of them.
    assert all(step["stream"] == 1 for step in pieces)
    assert max(sum(step.values()) for step in by_name) == CHUNKED_PREFILL_SIZE

    # The requests of a step make no difference to the answer.
    assert beside == whole == watched.reference.generate(prompt.token_ids, [], 8)


async def test_a_prompts_logprobs_are_computed_in_small_steps(watched: Watched) -> None:
    sampling = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True, prompt_logprobs=1)
    await watched.answer(text("logprobs", 2000, sampling))
    taken = [sum(step.values()) for step in watched.steps() if min(step.values()) > 1]
    assert taken == [LOGITS_TOKENS, 2000 - LOGITS_TOKENS]


async def test_a_seed_gives_the_same_answer_however_its_prompt_is_taken_in(
    watched: Watched,
) -> None:
    drawn = Sampling(max_tokens=8, temperature=1.0, seed=7, ignore_eos=True)
    whole = await watched.answer(text("seed-whole", 2000, drawn))
    long = Sampling(max_tokens=2000, temperature=0.0, ignore_eos=True)
    async with aclosing(watched.engine.generate(text("seed-stream", 40, long), ())) as stream:
        await anext(stream)
        watched.steps()
        beside = await watched.answer(text("seed-beside", 2000, drawn))
        assert any(sum(step.values()) == CHUNKED_PREFILL_SIZE for step in watched.steps())
    assert beside == whole


async def test_answers_that_make_room_for_another_tenants_are_the_same(watched: Watched) -> None:
    greedy = Sampling(max_tokens=150, temperature=0.0, ignore_eos=True)
    drawn = Sampling(max_tokens=150, temperature=1.0, seed=7, ignore_eos=True)
    asked = (greedy, drawn, greedy)
    # One slot is too many for eve alone, whichever of them it is.
    lengths = (40, 41, 600)

    async def eve(number: int) -> list[int]:
        prompt = text(f"eve-{number}", lengths[number], asked[number], "eve")
        return await watched.answer(prompt)

    alone = [await eve(number) for number in range(SLOTS)]
    watched.steps()
    together = [asyncio.create_task(eve(number)) for number in range(SLOTS)]
    taken = 0
    while taken < 3 * SLOTS:
        assert not any(task.done() for task in together)
        await asyncio.sleep(0.05)
        taken += sum(map(len, watched.steps()))
    short = Sampling(max_tokens=4, temperature=0.0, ignore_eos=True)
    bob = await watched.answer(text("bob", 50, short, "bob"))
    assert not any(task.done() for task in together)
    assert await asyncio.gather(*together) == alone
    assert bob == watched.reference.generate(text("bob", 50, short).token_ids, [], 4)
