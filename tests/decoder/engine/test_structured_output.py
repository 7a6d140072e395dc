"""Structured outputs in a real engine of a model that thinks before it answers."""

import asyncio
import gc
import json
import warnings
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from models.random_checkpoint import write_random_checkpoint
from pixtral_core.generation.sampling import Sampling, Structure, StructuredOutput
from pixtral_decoder.engine.engine import DecoderEngine, FinishReason, StructureTooSlow
from pixtral_decoder.engine.engine_args import EngineOptions
from pixtral_decoder.grammar import cost_trial
from pixtral_decoder.request import Prompt
from tests.decoder.prompts import text
from tests.support.tekken_version import THINKING, set_version

pytestmark = pytest.mark.asyncio(loop_scope="module")

(THINK, _), (END_THINK, _) = THINKING
NO_THOUGHT = {THINK: -100.0}
# A trial takes it for as good as any: what is ambiguous in it lies behind more than is tried. An
# answer takes a step for each letter of it, so here the trial ends earlier.
TRIED = 512
LATE = 'root ::= "a"{600} s\ns ::= "b" | s s | s s s'
# So that its answer never ends, which costs nobody more than it.
NEVER_ENDS = {2: -100.0} | NO_THOUGHT
SEEDS = range(4)
# No word of the schema.
THOUGHT = range(5000, 5006)


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    token_ids: list[int]
    reason: FinishReason | None


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_random_checkpoint(tmp_path_factory.mktemp("structured") / "thinking")
    set_version(directory, "v13", thinks=True)
    return directory


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(thinking: Path) -> AsyncIterator[DecoderEngine]:
    engine = DecoderEngine(EngineOptions(thinking, dtype="float32", context_length=8192))
    with warnings.catch_warnings():
        # vLLM's own: at import, while it loads, and of sockets that it leaves open.
        warnings.simplefilter("ignore")
        try:
            await engine.start()
            yield engine
        finally:
            await engine.shutdown()
            gc.collect()


async def answer(engine: DecoderEngine, prompt: Prompt) -> Answer:
    token_ids: list[int] = []
    said, reason = "", None
    async with aclosing(engine.generate(prompt, ())) as deltas:
        async for delta in deltas:
            said, reason = said + delta.text, delta.finish_reason
            token_ids += delta.token_ids
    return Answer(said, token_ids, reason)


async def test_a_grammar_that_becomes_ambiguous_ends_its_own_request_alone(
    engine: DecoderEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_trial, "MAX_FORCED", TRIED)
    greedy = Sampling(max_tokens=400, temperature=0.0, ignore_eos=True)
    alone = await answer(engine, text("plain", 40, greedy))
    kept = {"type": "array", "items": {"enum": ["é", "🙂"]}, "minItems": 30, "maxItems": 30}
    schema = replace(
        Sampling(max_tokens=400, temperature=0.0, logit_bias=NO_THOUGHT),
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
    assert structured.reason is FinishReason.STOP
    assert set(json.loads(structured.text)) <= {"é", "🙂"}
    # The engine goes on.
    assert await answer(engine, text("plain", 40, greedy)) == alone


CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Köln", "Paris"]}, "count": {"type": "integer", "maximum": 9}},
    "required": ["city", "count"],
    "additionalProperties": False,
}


def drawn(seed: int) -> Sampling:
    """The thought begins at once, and ends after some of THOUGHT, each of which comes once."""
    return Sampling(
        max_tokens=100,
        temperature=1.0,
        seed=seed,
        repetition_penalty=1e4,
        logit_bias=dict.fromkeys([THINK, END_THINK, *THOUGHT], 100.0),
        structured_output=StructuredOutput(Structure.JSON_SCHEMA, (json.dumps(CITY),), True),
    )


def is_city(said: str) -> bool:
    read = json.loads(said)
    return set(read) == {"city", "count"} and read["city"] in ("Köln", "Paris")


async def test_a_schema_holds_behind_a_thought_that_is_free(
    engine: DecoderEngine, thinking: Path
) -> None:
    tokenizer = Tekkenizer.from_file(thinking / "tekken.json")
    prompts = [text(f"thinks-{seed}", 40, drawn(seed)) for seed in SEEDS]
    begun = [
        replace(each, request_id=f"begun-{each.request_id}", token_ids=[*each.token_ids, THINK])
        for each in prompts
    ]
    lengths = []
    for each, has_begun in [(each, False) for each in prompts] + [(each, True) for each in begun]:
        told = await answer(engine, each)
        assert told.reason is FinishReason.STOP
        first, *rest = told.token_ids if not has_begun else [THINK, *told.token_ids]
        assert first == THINK
        end = rest.index(END_THINK)
        lengths.append(end)
        assert is_city(tokenizer.decode([token for token in rest[end + 1 :] if token >= 1000]))
    # The schema allows none of its tokens first.
    assert max(lengths) > 0


async def test_a_schema_holds_from_the_first_token_where_nothing_is_thought(
    engine: DecoderEngine,
) -> None:
    for seed in SEEDS:
        sampling = replace(drawn(seed), logit_bias=NO_THOUGHT)
        told = await answer(engine, text(f"says-{seed}", 40, sampling))
        assert told.reason is FinishReason.STOP
        assert is_city(told.text)
