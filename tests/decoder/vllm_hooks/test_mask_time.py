"""The time that structured outputs take in the engine, and the end of those that take too much."""

import asyncio
import gc
import json
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from inspect import unwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from pixtral_core.generation.sampling import Sampling, Structure, StructuredOutput
from pixtral_decoder.engine.engine import DecoderEngine, FinishReason, StructureTooSlow
from pixtral_decoder.engine.engine_args import EngineOptions
from pixtral_decoder.request import Prompt
from tests.decoder.prompts import text
from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

    from pixtral_decoder.vllm_hooks import mask_time

pytestmark = pytest.mark.asyncio(loop_scope="module")

# A trial takes it for as good as any: what is ambiguous in it lies behind more than is tried.
LATE = 'root ::= "a"{4200} s\ns ::= "b" | s s | s s s'
# So that its answer never ends, which costs nobody more than it.
NEVER_ENDS = {2: -100.0}


def grammar(takes: Callable[[], None]) -> Any:
    matcher: Any = SimpleNamespace(
        fill_next_token_bitmask=lambda *_: takes(), accept_token=lambda _: True
    )
    context: Any = None
    return XgrammarGrammar(vocab_size=1, matcher=matcher, ctx=context)


def request(of: Any) -> Any:
    return SimpleNamespace(structured_output_request=SimpleNamespace(grammar=of))


def compute() -> None:
    until = time.thread_time() + 0.005
    while time.thread_time() < until:
        pass


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM has it, though an engine may have been started in this process before."""
    for name in mask_time._METHODS:
        monkeypatch.setattr(XgrammarGrammar, name, unwrap(getattr(XgrammarGrammar, name)))


async def test_still_there() -> None:
    assert_still_there(mask_time)


@pytest.mark.usefixtures("plain")
async def test_still_needed_while_vllm_does_not_measure() -> None:
    """Once this fails, vLLM may bound the time itself: `pixtral_decoder.vllm_hooks.mask_time`."""
    one = grammar(compute)
    before = dict(vars(one))
    one.fill_bitmask(None, 0)
    assert {**vars(one), "num_processed_tokens": 0} == before


@pytest.mark.usefixtures("plain")
async def test_time_is_a_requests_own_and_is_told_once() -> None:
    mask_time.measure()
    mask_time.measure()
    busy, idle = request(grammar(compute)), request(grammar(lambda: None))
    busy.structured_output_request.grammar.fill_bitmask(None, 0)
    idle.structured_output_request.grammar.fill_bitmask(None, 0)
    assert mask_time.take_seconds(busy) >= 0.005 > mask_time.take_seconds(idle)
    assert mask_time.take_seconds(busy) == 0.0
    assert mask_time.take_seconds(SimpleNamespace(structured_output_request=None)) == 0.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(checkpoint: Path) -> AsyncIterator[DecoderEngine]:
    engine = DecoderEngine(EngineOptions(checkpoint, dtype="float32", context_length=8192))
    with warnings.catch_warnings():
        # vLLM's own: at import, while it loads, and of sockets that it leaves open.
        warnings.simplefilter("ignore")
        try:
            await engine.start()
            yield engine
        finally:
            await engine.shutdown()
            gc.collect()


async def answer(engine: DecoderEngine, prompt: Prompt) -> tuple[str, FinishReason | None]:
    said, reason = "", None
    async with aclosing(engine.generate(prompt, ())) as deltas:
        async for delta in deltas:
            said, reason = said + delta.text, delta.finish_reason
    return said, reason


async def test_a_grammar_that_becomes_ambiguous_ends_its_own_request_alone(
    engine: DecoderEngine,
) -> None:
    greedy = Sampling(max_tokens=400, temperature=0.0, ignore_eos=True)
    alone = await answer(engine, text("plain", 40, greedy))
    kept = {"type": "array", "items": {"enum": ["é", "🙂"]}, "minItems": 30, "maxItems": 30}
    schema = replace(
        Sampling(max_tokens=400, temperature=0.0),
        structured_output=StructuredOutput(Structure.JSON_SCHEMA, (json.dumps(kept),), True),
    )
    slow = Sampling(
        max_tokens=6000,
        temperature=0.0,
        logit_bias=NEVER_ENDS,
        structured_output=StructuredOutput(Structure.GRAMMAR, (LATE,)),
    )

    async def ends(prompt: Prompt) -> str:
        with pytest.raises(StructureTooSlow) as ended:
            await answer(engine, prompt)
        return ended.value.field

    field, beside, structured = await asyncio.gather(
        ends(text("slow", 40, slow, "eve")),
        answer(engine, text("plain", 40, greedy)),
        answer(engine, text("schema", 40, schema, "eve")),
    )
    assert field == "sampling.structured_output.grammar"
    assert beside == alone
    # Also of the same tenant: it is not what takes the time.
    assert structured[1] is FinishReason.STOP
    assert set(json.loads(structured[0])) <= {"é", "🙂"}
    # The engine goes on.
    assert await answer(engine, text("plain", 40, greedy)) == alone
