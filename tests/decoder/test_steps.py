"""How many tokens a step takes, by the decision alone and by what a real engine's steps were."""

import gc
import json
import random
import warnings
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_asyncio

from services.decoder.engine import DecoderEngine
from services.decoder.engine_args import EngineOptions, engine_args
from services.decoder.prompt import Prompt
from services.decoder.sampling import Sampling
from services.decoder.steps import AWAITED_TOKENS, is_awaited, writes_on
from tests.decoder.steps_seen import SCHEDULER, STEPS_SEEN
from tests.reference import Reference

pytestmark = pytest.mark.asyncio(loop_scope="module")

MOST_TOKENS = 8192
LENGTH = 6000


def request(
    *,
    prompt: int = 100,
    computed: int = 100,
    placeholders: int = 0,
    max_tokens: int = 10,
    prompt_logprobs: int | None = None,
) -> SimpleNamespace:
    """As vLLM's scheduler knows one that runs."""
    return SimpleNamespace(
        num_prompt_tokens=prompt,
        num_computed_tokens=computed,
        num_output_placeholders=placeholders,
        max_tokens=max_tokens,
        is_prefill_chunk=computed < prompt,
        sampling_params=SimpleNamespace(prompt_logprobs=prompt_logprobs),
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


async def test_a_step_is_awaited_by_answers_and_by_prompts_whose_logits_it_holds() -> None:
    in_prompt, answering = request(computed=60), request()
    waiting = request(computed=0, prompt_logprobs=1)
    assert not is_awaited([], [])
    assert not is_awaited([in_prompt], [in_prompt])
    assert is_awaited([in_prompt, answering], [in_prompt, answering])
    assert is_awaited([], [waiting])


async def test_what_the_user_names_is_what_vllm_is_given(checkpoint: Path) -> None:
    plain = engine_args(EngineOptions(checkpoint))
    assert plain.scheduler_cls == "services.decoder.steps.scheduler"
    # vLLM's own choice.
    assert plain.max_num_batched_tokens is None
    more = {"scheduler_cls": None, "max_num_batched_tokens": 1024}
    given = engine_args(EngineOptions(checkpoint, more=more))
    assert (given.scheduler_cls, given.max_num_batched_tokens) == (None, 1024)
    assert engine_args(EngineOptions(checkpoint, max_running=3000)).max_num_batched_tokens == 3000


@dataclass(frozen=True, slots=True)
class Watched:
    engine: DecoderEngine
    seen: Path
    reference: Reference

    def steps(self) -> list[dict[str, int]]:
        """What each step since the last call took, by request."""
        lines = self.seen.read_text().splitlines()
        self.seen.write_text("")
        return [json.loads(line) for line in lines]

    async def answer(self, prompt: Prompt) -> list[int]:
        async with aclosing(self.engine.generate(prompt, ())) as deltas:
            return [token async for delta in deltas for token in delta.token_ids]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[True, False])
async def watched(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Watched]:
    seen = tmp_path_factory.mktemp("steps") / "seen"
    more = {
        "async_scheduling": request.param,
        "max_num_batched_tokens": MOST_TOKENS,
        "scheduler_cls": SCHEDULER,
    }
    options = EngineOptions(checkpoint, dtype="float32", context_length=8192, more=more)
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


def text(name: str, length: int, sampling: Sampling, salt: str = "") -> Prompt:
    """The same words for the same length, told apart in the prefix cache by the salt."""
    words = random.Random(length)
    token_ids = [1, 3, *(words.randrange(1000, 131072) for _ in range(length - 3)), 4]
    return Prompt(name, token_ids, (), sampling, salt or name)


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
    assert len(pieces) == -(-LENGTH // (AWAITED_TOKENS - 1))
    # The answer goes on in each of them.
    assert all(step["stream"] == 1 for step in pieces)
    assert max(sum(step.values()) for step in by_name) == AWAITED_TOKENS

    # What is taken together makes no difference to the answer.
    assert beside == whole == watched.reference.generate(prompt.token_ids, [], 8)


async def test_a_prompts_logprobs_are_computed_in_small_steps(watched: Watched) -> None:
    sampling = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True, prompt_logprobs=1)
    await watched.answer(text("logprobs", LENGTH, sampling))
    taken = [sum(step.values()) for step in watched.steps()]
    assert sum(taken) == LENGTH
    assert max(taken) == AWAITED_TOKENS
