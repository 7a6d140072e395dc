"""Structured outputs begin behind the thought of a model that thinks."""

import json
import warnings
from inspect import unwrap
from types import SimpleNamespace
from typing import Any

import pytest
import xgrammar

from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.v1.structured_output import StructuredOutputManager
    from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

    from pixtral_decoder.vllm_hooks import mask_time, thinking_grammar
    from pixtral_decoder.vllm_hooks.thinking_grammar import ThinkingGrammar

# Behind the bytes.
THINK, END_THINK, END = 287, 288, 0
VOCABULARY = 300
IDS = {
    "[THINK]": THINK,
    "[/THINK]": END_THINK,
    "</s>": END,
    "[/INST]": 289,
    "[/TOOL_RESULTS]": 290,
    "[TOOL_CALLS]": 291,
}
SCHEMA = json.dumps({"type": "integer"})


def inner() -> Any:
    """As vLLM makes it of a schema, over a vocabulary of bytes."""
    pieces = [bytes([value]) for value in range(256)] + [b""] * (VOCABULARY - 256)
    vocabulary = xgrammar.TokenizerInfo(pieces, vocab_size=VOCABULARY, stop_token_ids=[END])
    compiled = xgrammar.GrammarCompiler(vocabulary).compile_json_schema(SCHEMA)
    matcher = xgrammar.GrammarMatcher(compiled)
    return XgrammarGrammar(vocab_size=VOCABULARY, matcher=matcher, ctx=compiled)


def allowed(grammar: Any) -> set[int]:
    bitmask = xgrammar.allocate_token_bitmask(2, VOCABULARY)
    grammar.fill_bitmask(bitmask, 1)
    bits = int.from_bytes(bitmask[1].numpy().tobytes(), "little")
    return {token for token in range(VOCABULARY) if bits >> token & 1}


def thinking(*, has_begun: bool = False) -> Any:
    return ThinkingGrammar(inner(), THINK, END_THINK, is_thinking=has_begun)


DIGITS = set(b"0123456789")


def test_still_there() -> None:
    assert_still_there(thinking_grammar)


def test_still_needed_while_a_grammar_of_vllms_allows_no_thought() -> None:
    """Once this fails, vLLM may let a thought come first: `thinking_grammar`."""
    assert THINK not in allowed(inner())
    assert not inner().accept_tokens("a", [THINK])


def test_a_thought_may_come_first_and_the_grammar_holds_behind_it() -> None:
    grammar = thinking()
    assert allowed(grammar) == allowed(inner()) | {THINK}
    assert grammar.accept_tokens("a", [THINK])
    assert allowed(grammar) >= set(range(VOCABULARY))
    assert grammar.accept_tokens("a", [*b"no digits", 17])
    assert not grammar.is_terminated()
    assert grammar.accept_tokens("a", [END_THINK])
    assert allowed(grammar) == allowed(inner())
    assert grammar.accept_tokens("a", [*b"42"])
    assert allowed(grammar) > DIGITS
    assert THINK not in allowed(grammar)
    assert grammar.accept_tokens("a", [END])
    assert grammar.is_terminated()


def test_an_answer_without_a_thought_is_held_to_the_grammar() -> None:
    grammar = thinking()
    assert not grammar.accept_tokens("a", [*b"x"])
    grammar = thinking()
    assert grammar.accept_tokens("a", [*b"4"])
    assert THINK not in allowed(grammar)
    assert not grammar.accept_tokens("a", [THINK])


def test_a_thought_that_the_prompt_began_goes_on() -> None:
    grammar = thinking(has_begun=True)
    assert allowed(grammar) >= set(range(VOCABULARY))
    assert grammar.accept_tokens("a", [*b"so", END_THINK, *b"4"])
    assert allowed(grammar) > DIGITS
    assert ord("a") not in allowed(grammar)


def test_tokens_that_are_tried_are_taken_back() -> None:
    grammar = thinking()
    tokens = [THINK, *b"a", END_THINK, *b"4x"]
    assert grammar.validate_tokens(tokens) == tokens[:-1]
    assert allowed(grammar) == allowed(inner()) | {THINK}
    assert grammar.accept_tokens("a", tokens[:-1])
    grammar.rollback(2)
    assert allowed(grammar) >= set(range(VOCABULARY))
    grammar.rollback(2)
    assert allowed(grammar) == allowed(inner()) | {THINK}
    assert grammar.accept_tokens("a", [THINK])
    grammar.reset()
    assert allowed(grammar) == allowed(inner()) | {THINK}


@pytest.mark.parametrize(
    ("prompt", "first"),
    [
        ([5, IDS["[/INST]"]], "either"),
        ([THINK, 5, END_THINK, IDS["[/INST]"]], "either"),
        ([5, IDS["[/TOOL_RESULTS]"]], "either"),
        ([IDS["[/INST]"], THINK, 5], "thought"),
        # A call that must be made, an answer's beginning, and a prompt of no conversation.
        ([IDS["[/INST]"], IDS["[TOOL_CALLS]"]], "answer"),
        ([IDS["[/INST]"], 5, 6], "answer"),
        ([IDS["[/INST]"], THINK, 5, END_THINK], "answer"),
        ([THINK, 5, END, 6], "answer"),
        ([], "answer"),
    ],
)
def test_a_thought_may_come_where_an_answer_begins(
    prompt: list[int], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        StructuredOutputManager,
        "_create_grammar",
        unwrap(StructuredOutputManager._create_grammar),
    )
    thinking_grammar.let_think()
    grammar = made(prompt, IDS)
    masks = {
        "either": allowed(inner()) | {THINK},
        "answer": allowed(inner()),
    }
    if first == "thought":
        assert allowed(grammar) >= set(range(VOCABULARY))
    else:
        assert allowed(grammar) == masks[first]
    others = {name: token for name, token in IDS.items() if "THINK" not in name}
    assert allowed(made(prompt, others)) == allowed(inner())


def made(prompt: list[int], ids: dict[str, int]) -> Any:
    """The grammar of a request with that prompt, by a tokenizer with those control tokens."""
    tekken = SimpleNamespace(is_special=ids.__contains__, get_special_token=ids.__getitem__)
    backend = SimpleNamespace(compile_grammar=lambda *_, **__: inner())
    manager: Any = SimpleNamespace(
        tokenizer=SimpleNamespace(is_tekken=True, tokenizer=tekken), backend=backend
    )
    request: Any = SimpleNamespace(
        prompt_token_ids=prompt,
        sampling_params=None,
        structured_output_request=SimpleNamespace(structured_output_key=("JSON", SCHEMA)),
    )
    return StructuredOutputManager._create_grammar(manager, request)


def test_the_time_of_its_grammar_is_measured() -> None:
    grammar = thinking()
    setattr(grammar._grammar, mask_time._SECONDS, 0.5)
    request: Any = SimpleNamespace(structured_output_request=SimpleNamespace(grammar=grammar))
    assert mask_time.take_seconds(request) == 0.5
    assert mask_time.take_seconds(request) == 0.0
