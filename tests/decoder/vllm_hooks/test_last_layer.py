"""The last layer's feed-forward for those tokens alone whose logits are asked for."""

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
import torch
from torch import nn

from pixtral_core.generation.sampling import Sampling
from pixtral_decoder.engine.engine import DecoderEngine, Delta
from pixtral_decoder.engine.engine_args import EngineOptions, engine_args
from pixtral_decoder.request import Prompt
from tests.decoder.prompts import text
from tests.support.reference import Reference

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.forward_context import override_forward_context

    from pixtral_decoder.vllm_hooks import last_layer
    from pixtral_decoder.vllm_hooks.scheduler import AWAITED_TOKENS

pytestmark = pytest.mark.asyncio(loop_scope="module")

MOST_TOKENS = 4096
TOKENS = 6
# Of requests that are there at once: with others, alone in a step, longer than any step.
LENGTHS = (1700, 900, 40, 1200, 6000, 7)


def config_of(checkpoint: Path, **more: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return engine_args(EngineOptions(checkpoint, more=more)).create_engine_config()


async def test_it_is_the_decoders_own_scheduler_that_allows_it(checkpoint: Path) -> None:
    assert last_layer.is_sampled_alone(config_of(checkpoint))
    # vLLM's takes in prompts whose log-probabilities were asked for in steps of any size.
    assert not last_layer.is_sampled_alone(config_of(checkpoint, scheduler_cls=None))
    assert not last_layer.is_sampled_alone(config_of(checkpoint, enable_lora=True))
    drafts = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
    assert not last_layer.is_sampled_alone(config_of(checkpoint, speculative_config=drafts))
    config = config_of(checkpoint)
    config.parallel_config.world_size = 2
    assert not last_layer.is_sampled_alone(config)


class Squares(nn.Module):
    """Says of how many rows it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(hidden))
        return hidden.square()


def metadata(*lengths: int) -> dict[str, SimpleNamespace]:
    """As vLLM's backends have it of a step with so many tokens of each request."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return {"layer": SimpleNamespace(query_start_loc=ends, num_actual_tokens=sum(lengths))}


def run(
    layer: Callable[[torch.Tensor], torch.Tensor], config: Any, step: object, tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = torch.rand(tokens, 8)
    layers = config.compilation_config.static_forward_context
    context = SimpleNamespace(no_compile_layers=layers, attn_metadata=step)
    with override_forward_context(context):
        return hidden, layer(hidden)


@pytest.fixture
def narrowed() -> tuple[Squares, Any]:
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=64),
        compilation_config=SimpleNamespace(static_forward_context={}),
    )
    squares = Squares()
    last_layer.narrow(squares, config)
    return squares, config


async def test_a_large_steps_last_tokens_are_run_and_the_others_are_not(
    narrowed: tuple[Squares, Any],
) -> None:
    squares, config = narrowed
    hidden, result = run(squares, config, metadata(1700, 1, 30), 1731)
    assert squares.rows == [3]
    last = torch.tensor([1699, 1700, 1730])
    expected = torch.zeros_like(hidden)
    expected[last] = hidden[last].square()
    assert torch.equal(result, expected)


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(metadata(AWAITED_TOKENS), id="small enough to hold a prompt's logits"),
        pytest.param(None, id="memory's trial run"),
        pytest.param([metadata(1000), metadata(1000)], id="two halves at once"),
        pytest.param({"layer": SimpleNamespace(num_actual_tokens=2000)}, id="a backend without"),
    ],
)
async def test_all_tokens_are_run_where_it_is_not_known_which_are_last(
    narrowed: tuple[Squares, Any], step: object
) -> None:
    squares, config = narrowed
    hidden, result = run(squares, config, step, 2000)
    assert squares.rows == [2000]
    assert torch.equal(result, hidden.square())


async def test_a_compiled_model_decides_as_it_runs(narrowed: tuple[Squares, Any]) -> None:
    squares, config = narrowed
    compiled = torch.compile(squares, fullgraph=True, dynamic=True, backend="aot_eager")
    for step, rows in ((metadata(100), 100), (metadata(1700, 90), 2), (metadata(1600), 1)):
        squares.rows.clear()
        tokens = step["layer"].num_actual_tokens
        hidden, result = run(compiled, config, step, tokens)
        assert squares.rows == [rows]
        assert torch.equal(result[-1], hidden[-1].square())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(checkpoint: Path) -> AsyncIterator[DecoderEngine]:
    more = {"max_num_batched_tokens": MOST_TOKENS, "enable_prefix_caching": False}
    options = EngineOptions(checkpoint, dtype="float32", context_length=8192, more=more)
    engine = DecoderEngine(options)
    with warnings.catch_warnings():
        # vLLM's own: while it loads, and of sockets that it leaves open.
        warnings.simplefilter("ignore")
        try:
            await engine.start()
            yield engine
        finally:
            await engine.shutdown()
            gc.collect()


async def answer(engine: DecoderEngine, one: Prompt) -> list[Delta]:
    async with aclosing(engine.generate(one, ())) as deltas:
        return [delta async for delta in deltas]


async def test_answers_of_large_steps_are_the_plain_models(
    engine: DecoderEngine, checkpoint: Path
) -> None:
    sampling = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True, logprobs=2)
    prompts = [text(f"of {length}", length, sampling) for length in LENGTHS]
    answers = await asyncio.gather(*(answer(engine, each) for each in prompts))
    reference = Reference(checkpoint)
    for asked, deltas in zip(prompts, answers, strict=True):
        token_ids = [token for delta in deltas for token in delta.token_ids]
        assert token_ids == reference.generate(asked.token_ids, [], TOKENS, ignore_eos=True)
        told = [each.chosen.logprob for delta in deltas for each in delta.logprobs if each.chosen]
        rows = reference.logprobs(asked.token_ids, [], token_ids)
        wanted = rows[torch.arange(TOKENS), torch.tensor(token_ids)]
        assert torch.allclose(torch.tensor(told), wanted, atol=2e-3)


async def test_a_prompts_logprobs_are_the_plain_models_beside_large_prompts(
    engine: DecoderEngine, checkpoint: Path
) -> None:
    one = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)
    told = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True, prompt_logprobs=0)
    asked = text("told", 2000, told)
    others = [answer(engine, text(f"of {length}", length, one)) for length in (3000, 2500)]
    deltas, *_ = await asyncio.gather(answer(engine, asked), *others)
    pieces = [each.chosen for delta in deltas for each in delta.prompt_logprobs]
    logprobs = torch.tensor([each.logprob for each in pieces if each])
    rows = Reference(checkpoint).prompt_logprobs(asked.token_ids, [])
    wanted = rows[torch.arange(1999), torch.tensor(asked.token_ids[1:])]
    assert torch.allclose(logprobs, wanted, atol=2e-3)
